package natsd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// In a cluster JetStream knows a server by its name: one that comes back under another
// name is one more, and the old one is missed for ever. The name is therefore kept in
// the store's directory, where it also tells what the store is: the store of a server
// that was alone has nothing in it that a cluster would keep (NATS deletes its streams
// there), and one of a cluster's server alone would answer with what is old.
const nameFile = "nats-name"

// checkStore checks that the store in o.Dir is one for such a server, and returns the
// name to run under.
func checkStore(o Options) (string, error) {
	path := filepath.Join(o.Dir, nameFile)
	b, err := os.ReadFile(path) // #nosec G304 -- in the operator's DATA_DIR
	switch kept := strings.TrimSpace(string(b)); {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("store of the embedded NATS: %w", err)
	case o.Routes == nil && kept != "":
		return "", fmt.Errorf("DIALRING_DATA_DIR %s is the store of %q, one of several NATS servers, and DIALRING_NATS_ROUTES is not set: set it, or take another directory", o.Dir, kept)
	case o.Routes == nil:
		return o.Name, nil
	case kept != "" && o.NameSet && kept != o.Name:
		return "", fmt.Errorf("DIALRING_DATA_DIR %s is the store of %q, and DIALRING_NATS_NAME is %q: a server keeps its name as long as its store; set the old name, or empty the directory", o.Dir, kept, o.Name)
	case kept != "":
		return kept, nil
	}
	if streams, err := os.ReadDir(filepath.Join(o.Dir, "jetstream", "$G", "streams")); err == nil && len(streams) > 0 {
		return "", fmt.Errorf("DIALRING_DATA_DIR %s is the store of a NATS server that was alone, and DIALRING_NATS_ROUTES makes it one of several, which would delete what is in it: take an empty directory (what was stored is not taken along), or unset DIALRING_NATS_ROUTES", o.Dir)
	}
	if err := os.MkdirAll(o.Dir, 0o750); err != nil {
		return "", fmt.Errorf("store of the embedded NATS: %w", err)
	}
	if err := os.WriteFile(path, []byte(o.Name+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("store of the embedded NATS: %w", err)
	}
	if err := errors.Join(syncFile(path), syncFile(o.Dir)); err != nil {
		return "", fmt.Errorf("store of the embedded NATS: %w", err)
	}
	return o.Name, nil
}
