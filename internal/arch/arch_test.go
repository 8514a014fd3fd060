package arch

import (
	"bytes"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/dialring/dialring"

// homes says which packages may import what comes from outside, by the longest
// prefix of the import path that is listed. Whatever is not listed has no home:
// a new dependency gets a line here, on purpose.
var homes = map[string][]string{
	"github.com/serialx/hashring":          {"internal/ring"},
	"github.com/lxzan/gws":                 {"wsnode", "client"},
	"github.com/nats-io/nats.go":           {"internal/cluster", "internal/inbox"},
	"github.com/nats-io/nats-server":       {"internal/natsd"},
	"github.com/kelseyhightower/envconfig": {"internal/config"},
	"github.com/golang-jwt/jwt":            {"internal/ticket", "locator", "client/cmd/dialring"},
	"github.com/MicahParks/jwkset":         {"locator"},
	"github.com/MicahParks/keyfunc":        {"locator"},
	"github.com/prometheus/client_golang":  {"internal/metric", "internal/httpd", "locator", "wsnode"},
	"go.opentelemetry.io/otel":             {"internal/tracing"},
	"go.opentelemetry.io/proto/otlp":       {"internal/e2e"},
	"google.golang.org/protobuf":           {"internal/e2e"},
	"github.com/labstack/echo":             {"internal/httpd", "locator", "wsnode"},
	"filippo.io/edwards25519":              {"internal/ticket"},
	"github.com/chromedp/chromedp":         {"internal/chrome"},
	"github.com/chromedp/cdproto":          {"internal/chrome"},
	"github.com/spf13/cobra":               {"client/cmd/dialring"},
	"github.com/HdrHistogram":              {"client/cmd/dialring"},
	"golang.org/x/term":                    {"client/cmd/dialring"},
	"golang.org/x/sync":                    {"*"},
	"golang.org/x/sys":                     {"internal/httpd"},
	"golang.org/x/time":                    {"*"},
}

// root is the directory of the module.
func root(t *testing.T) string {
	t.Helper()
	_, file, _, ok := runtime.Caller(0)
	dir := filepath.Join(filepath.Dir(file), "..", "..")
	if !ok || !filepath.IsAbs(file) { // built with -trimpath
		dir = filepath.Join("..", "..")
	}
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// walk calls f with each file of the module, by its slash-separated path.
func walk(t *testing.T, f func(name, file string)) {
	t.Helper()
	dir := root(t)
	err := filepath.WalkDir(dir, func(file string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		if e.IsDir() {
			if base := e.Name(); file != dir && (base == ".git" || base == "node_modules" || base == "testdata") {
				return fs.SkipDir
			}
			return nil
		}
		if e.Type().IsRegular() {
			f(filepath.ToSlash(name), file)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// imports returns, for each package of the module by its directory, what its
// files other than tests import, and from which file.
func imports(t *testing.T) map[string]map[string]string {
	t.Helper()
	all := map[string]map[string]string{}
	set := token.NewFileSet()
	walk(t, func(name, file string) {
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return
		}
		parsed, err := parser.ParseFile(set, file, nil, parser.ImportsOnly)
		if err != nil {
			t.Error(err)
			return
		}
		dir := path.Dir(name)
		if all[dir] == nil {
			all[dir] = map[string]string{}
		}
		for _, i := range parsed.Imports {
			p, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				t.Error(err)
			}
			all[dir][p] = name
		}
	})
	for _, dir := range []string{"internal/wire", "internal/cluster", "internal/ring", "client", "locator", "wsnode", "locator/cmd/locator", "client/cmd/dialring"} {
		if len(all[dir]) == 0 {
			t.Fatalf("nothing was found in %s: has it moved?", dir)
		}
	}
	return all
}

// within tells whether p is dir or below it.
func within(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

// standard tells whether an import is of the standard library.
func standard(p string) bool {
	first, _, _ := strings.Cut(p, "/")
	return !strings.Contains(first, ".")
}

// ours returns the directory in the module of an import, "" of others.
func ours(p string) string {
	if !within(p, module) {
		return ""
	}
	return strings.TrimPrefix(strings.TrimPrefix(p, module), "/")
}

// breaks says which arrow an import breaks, "" if none.
func breaks(dir, p string) string {
	if standard(p) {
		return ""
	}
	to := ours(p)
	switch {
	case within(dir, "internal/wire"):
		return "internal/wire uses the standard library only"
	case within(dir, "client/cmd") && to != "" && to != "internal/wire" && to != "internal/trust" && to != "client":
		return "the command is a client: of ours it uses the SDK, internal/wire, and internal/trust to make keys"
	case within(dir, "internal/trust") && to != "internal/wire":
		return "internal/trust uses internal/wire and the standard library only"
	case within(dir, "client") && !within(dir, "client/cmd") && to != "internal/wire" && !within(p, "github.com/lxzan/gws"):
		return "client uses internal/wire, gws and the standard library only"
	case within(dir, "locator") && within(to, "wsnode"), within(dir, "wsnode") && within(to, "locator"):
		return "locator and wsnode never import each other"
	case within(dir, "internal") && (within(to, "locator") || within(to, "wsnode") || within(to, "client") || within(to, "examples")):
		return "internal never imports what is built of it"
	case (within(dir, "locator") || within(dir, "wsnode")) && (within(to, "client") || within(to, "examples")):
		return "the programs never import the SDK"
	case to != "" || p == module:
		return ""
	}
	home := ""
	for prefix := range homes {
		if within(p, prefix) && len(prefix) > len(home) {
			home = prefix
		}
	}
	switch {
	case home == "":
		return "it has no home yet: see homes in this test"
	case !slices.Contains(homes[home], dir) && homes[home][0] != "*":
		return "its home is " + strings.Join(homes[home], ", ")
	}
	return ""
}

func TestArrows(t *testing.T) {
	for dir, list := range imports(t) {
		for p, file := range list {
			if why := breaks(dir, p); why != "" {
				t.Errorf("%s imports %s: %s", file, p, why)
			}
		}
	}
}

// The rules themselves: what each must refuse.
func TestRules(t *testing.T) {
	for _, c := range []struct{ dir, path string }{
		{"internal/wire", module + "/internal/ring"},
		{"internal/wire", "golang.org/x/time/rate"},
		{"client", module + "/internal/ring"},
		{"client", "github.com/nats-io/nats.go"},
		{"client", "golang.org/x/sync/errgroup"},
		{"client", "github.com/spf13/cobra"},
		{"client", module + "/client/cmd/dialring"},
		{"client/cmd/dialring", module + "/locator"},
		{"client/cmd/dialring", module + "/internal/ring"},
		{"client/cmd/dialring", "github.com/nats-io/nats.go"},
		{"internal/trust", module + "/internal/cluster"},
		{"internal/trust", "github.com/golang-jwt/jwt/v5"},
		{"client", module + "/internal/trust"},
		{"locator", module + "/wsnode"},
		{"locator/cmd/locator", module + "/wsnode"},
		{"wsnode", module + "/locator"},
		{"wsnode", module + "/client"},
		{"internal/cluster", module + "/locator"},
		{"internal/cluster", module + "/wsnode"},
		{"internal/httpd", module + "/client"},
		{"locator", "github.com/serialx/hashring"},
		{"locator", "github.com/lxzan/gws"},
		{"wsnode", "github.com/nats-io/nats.go/jetstream"},
		{"internal/cluster", "github.com/nats-io/nats-server/v2/server"},
		{"locator", "github.com/kelseyhightower/envconfig"},
		{"wsnode", "github.com/golang-jwt/jwt/v5"},
		{"internal/cluster", "github.com/prometheus/client_golang/prometheus"},
		{"internal/peer", "github.com/labstack/echo/v4"},
		{"wsnode", "github.com/gorilla/websocket"},
	} {
		if breaks(c.dir, c.path) == "" {
			t.Errorf("%s may import %s", c.dir, c.path)
		}
	}
	for _, c := range []struct{ dir, path string }{
		{"internal/wire", "encoding/json"},
		{"client", module + "/internal/wire"},
		{"client", "github.com/lxzan/gws"},
		{"client/cmd/dialring", module + "/client"},
		{"client/cmd/dialring", "github.com/spf13/cobra"},
		{"internal/cluster", "github.com/nats-io/nats.go/jetstream"},
		{"internal/cluster", "golang.org/x/time/rate"},
		{"examples/quickstart", module + "/wsnode"},
		{"internal/ticket", "github.com/golang-jwt/jwt/v5"},
	} {
		if why := breaks(c.dir, c.path); why != "" {
			t.Errorf("%s may not import %s: %s", c.dir, c.path, why)
		}
	}
}

// The repository stands alone: nothing in it leads beside it.
func TestNothingBeside(t *testing.T) {
	beside := []byte(".." + "/shared")
	walk(t, func(name, file string) {
		b, err := os.ReadFile(file)
		if err != nil {
			if !os.IsNotExist(err) { // a test of another package may have ended meanwhile
				t.Error(err)
			}
			return
		}
		if bytes.Contains(b, beside) {
			t.Errorf("%s mentions %s", name, beside)
		}
	})
}
