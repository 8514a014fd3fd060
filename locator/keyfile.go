package locator

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dialring/dialring/internal/config"
	"github.com/dialring/dialring/internal/reread"
	"github.com/dialring/dialring/internal/wire"
)

// apiKeys are the keys of the environment, and those of a file, which is read again when it
// has changed. All methods may be called concurrently.
type apiKeys struct {
	env  []string
	file string // "": there is none
	log  *slog.Logger

	set  atomic.Pointer[keySet]
	read []byte // what the set was made of
	ok   atomic.Bool
	by   *prometheus.CounterVec // pushes by key; set before run
}

// newAPIKeys has the keys of the environment only; load reads the file.
func newAPIKeys(c *Config, log *slog.Logger) *apiKeys {
	a := &apiKeys{env: c.APIKeys, file: c.APIKeysFile, log: log}
	s, err := keysOf(c.APIKeys, nil)
	if err != nil {
		panic(err) // it is about a file
	}
	a.set.Store(&s)
	a.ok.Store(true)
	return a
}

func (a *apiKeys) current() keySet { return *a.set.Load() }

// start reads the file for the first time.
func (a *apiKeys) start(by *prometheus.CounterVec) error {
	a.by = by
	for _, k := range a.current() {
		a.count(k)
	}
	if a.file == "" {
		return nil
	}
	if err := a.load(); err != nil {
		return config.Errorf("DIALRING_API_KEYS_FILE: %s: %v", a.file, err)
	}
	return nil
}

// count has the pushes with a key counted under its name.
func (a *apiKeys) count(k *apiKey) {
	k.pushed, k.failed = a.by.WithLabelValues(k.name, resultOK), a.by.WithLabelValues(k.name, resultFailed)
}

// load reads the file and, if it is another one than before, goes by it: a key that is not
// in it any more is refused from then on.
func (a *apiKeys) load() error {
	b, err := reread.Read(a.file, wire.MaxKeyFile)
	if err != nil || a.read != nil && bytes.Equal(a.read, b) {
		return err
	}
	entries, err := wire.ParseKeyFile(b)
	if err != nil {
		return err
	}
	next, err := keysOf(a.env, entries)
	if err != nil {
		return err
	}
	was, now := a.current().byName(), next.byName()
	var added, removed, other []string
	for name, k := range now {
		switch old := was[name]; {
		case old == nil:
			added = append(added, name)
		case !k.same(old):
			other = append(other, name)
		}
		a.count(k)
	}
	a.set.Store(&next)
	a.read = b
	if len(next) == 0 {
		a.log.Warn("there is no API key any more: all services are refused until the file has one", "event", "api_keys_none", "file", a.file)
	}
	for name := range was {
		if now[name] == nil {
			removed = append(removed, name)
			a.by.DeletePartialMatch(prometheus.Labels{"key": name}) // else each name that ever was would stay
		}
	}
	reread.Audit(a.log, actAPIKeys, a.file, nil, "keys", len(entries), "added", some(added), "removed", some(removed), "changed", some(other))
	return nil
}

// byName are the keys by their names, those of the environment too: they stay.
func (s keySet) byName() map[string]*apiKey {
	m := make(map[string]*apiKey, len(s))
	for k := range maps.Values(s) {
		m[k.name] = k
	}
	return m
}

// some lists names for a line of the log.
func some(names []string) string {
	const most = 50
	slices.Sort(names)
	text := strings.Join(names[:min(len(names), most)], " ")
	if n := len(names) - most; n > 0 {
		text += fmt.Sprintf(" and %d others", n)
	}
	return text
}

// run looks for a new file until ctx ends. One that cannot be used changes nothing.
func (a *apiKeys) run(ctx context.Context) {
	if a.file == "" {
		return
	}
	said := ""
	reread.Watch(ctx, func() error {
		err := a.load()
		if a.ok.Store(err == nil); err == nil {
			said = ""
		}
		return err
	}, func(err error, nth int) {
		// Another fault is another line, and the same one is said again.
		if nth >= 2 && (err.Error() != said || nth%reread.Again == 0) {
			said = err.Error()
			a.log.Error("the file of API keys cannot be used; going on with the keys of before", "event", "api_keys_unread", "file", a.file, "error", err)
			reread.Audit(a.log, actAPIKeys, a.file, err)
		}
	})
}
