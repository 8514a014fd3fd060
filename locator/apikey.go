package locator

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/dialring/dialring/internal/config"
	"github.com/dialring/dialring/internal/httpd"
	"github.com/dialring/dialring/internal/wire"
)

// Credentials, as a metric names them.
const (
	credentialKey   = "api_key"
	credentialToken = "user_token"
)

// Why an API key is refused, as a metric and the log name it.
const (
	keyMissing = "missing"
	keyUnknown = "unknown"
	keyScope   = "scope" // it is known, and may not do that
	keyUsers   = "users" // nor to this user
)

var keyReasons = []string{keyMissing, keyUnknown, keyScope, keyUsers}

// apiKey is who calls: a service by its key, or an operator on the dashboard. It does not
// change; a new file makes new ones.
type apiKey struct {
	name   string
	digest [sha256.Size]byte
	scopes []string
	users  []string // prefixes of ids; nil: it reaches all

	pushed, failed prometheus.Counter // pushes with it; nil: not counted
}

// operator is who is let in by the admin listener.
var operator = &apiKey{scopes: wire.Scopes}

func (k *apiKey) may(scope string) bool { return slices.Contains(k.scopes, scope) }

// reaches tells whether a user, or a group, is one that the key is for.
func (k *apiKey) reaches(id string) bool {
	return k.users == nil || slices.ContainsFunc(k.users, func(prefix string) bool { return strings.HasPrefix(id, prefix) })
}

// same tells whether two entries are the same but for what was counted.
func (k *apiKey) same(o *apiKey) bool {
	return k.digest == o.digest && slices.Equal(k.scopes, o.scopes) && slices.Equal(k.users, o.users)
}

// counted counts a push with this key.
func (k *apiKey) counted(n int, ok bool) {
	switch {
	case k == nil || k.pushed == nil:
	case ok:
		k.pushed.Add(float64(n))
	default:
		k.failed.Add(float64(n))
	}
}

// keySet are keys by the digest of each. A map does not compare in constant time, and need
// not: what it compares is the SHA-256 of what a stranger sent, of which nobody can choose
// the bytes, by a hash with a seed of this process. So time tells nothing that leads closer
// to a key.
type keySet map[[sha256.Size]byte]*apiKey

// of returns whose key this is, nil if it is not known.
func (s keySet) of(key string) *apiKey {
	d := sha256.Sum256([]byte(key))
	k := s[d]
	if k == nil || subtle.ConstantTimeCompare(d[:], k.digest[:]) != 1 {
		return nil
	}
	return k
}

// envName is what the i-th key of DIALRING_API_KEYS is called.
func envName(i int) string { return fmt.Sprintf("env-%d", i+1) }

// keysOf makes a set of the keys of the environment, which may do everything, and of a file.
func keysOf(env []string, file []wire.KeyEntry) (keySet, error) {
	s := make(keySet, len(env)+len(file))
	names := map[string]bool{}
	for i, k := range env {
		d := sha256.Sum256([]byte(k))
		if s[d] == nil { // the same one twice is one
			s[d] = &apiKey{name: envName(i), digest: d, scopes: wire.Scopes}
			names[envName(i)] = true
		}
	}
	for i, e := range file {
		k := &apiKey{name: e.Name, scopes: e.Scopes, users: e.Users}
		if _, err := hex.Decode(k.digest[:], []byte(e.SHA256)); err != nil {
			panic(err) // wire.ParseKeyFile has looked
		}
		switch other := s[k.digest]; {
		case other != nil:
			return nil, fmt.Errorf("entry %d (%q) is a key that DIALRING_API_KEYS has too (%s), where it may do everything: take it away from one of the two", i+1, e.Name, other.name)
		case names[e.Name]:
			return nil, fmt.Errorf("entry %d (%q) has the name of a key in DIALRING_API_KEYS: choose another", i+1, e.Name)
		}
		s[k.digest] = k
	}
	return s, nil
}

// shortKey is below what a random key has: the log warns of it, and no more, since keys for
// tests and tools on one machine are short.
const shortKey = 16

// warnShort says which keys of the environment could be guessed.
func (l *Locator) warnShort() {
	for i, k := range l.cfg.APIKeys {
		if len(k) < shortKey && !l.cfg.dev {
			l.log.Warn("an API key is short enough to be guessed; make another one with: dialring key", "event", "api_key_short", "key", envName(i), "bytes", len(k), "want", shortKey)
		}
	}
}

const keyOfCaller = "dialring.key"

// keyOf returns who calls. Each route has been through known or operated; on one that was
// not it panics, and nobody gets in.
func keyOf(c echo.Context) *apiKey { return c.Get(keyOfCaller).(*apiKey) }

// service lets only callers through whose API key has a scope.
func (l *Locator) service(scope string) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc { return l.known(l.needs(scope)(next)) }
}

// known lets only callers with an API key through, and remembers which.
func (l *Locator) known(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		r := c.Request()
		token, ok := httpd.Bearer(r)
		var k *apiKey
		reason := keyMissing
		if ok && token != "" {
			k, reason = l.keys.current().of(token), keyUnknown
		}
		if k == nil {
			if p := l.limiter.Check(r); p != nil { // who guesses keys; with a key nobody is counted
				l.limited(limitAddress)
				return p
			}
			l.refusedKey(r, reason, noName)
			return unknownKey()
		}
		httpd.Vouch(r)
		size := l.bodySize(r)
		switch l.calls.Enter(k.digest, size) {
		case httpd.FullCalls:
			l.limited(limitKey)
			return wire.NewProblem(http.StatusTooManyRequests, wire.CodeRateLimited, "this API key has %d calls under way here, which is the most that it may (DIALRING_CALLS_PER_KEY)", l.cfg.CallsPerKey)
		case httpd.FullBytes:
			l.limited(limitBodies)
			return httpd.Busy("the bodies of calls that are under way here have as many bytes as they may; try again later, or another locator")
		}
		defer l.calls.Leave(k.digest, size)
		c.Set(keyOfCaller, k)
		return next(c)
	}
}

// needs refuses what a key has no scope for.
func (l *Locator) needs(scope string) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			if k := keyOf(c); !k.may(scope) {
				l.refusedKey(c.Request(), keyScope, k.name, "scope", scope)
				return noScope(scope)
			}
			return next(c)
		}
	}
}

func noScope(scope string) *wire.Problem {
	return wire.NewProblem(http.StatusForbidden, wire.CodeForbidden, "this API key may not do that: it needs the scope %s", scope)
}

func unknownKey() *wire.Problem {
	p := wire.NewProblem(http.StatusUnauthorized, wire.CodeUnauthorized, "an API key is missing or not known: send it as Authorization: Bearer <key>")
	p.Header = [2]string{"WWW-Authenticate", "Bearer"}
	return p
}

// reach refuses users, or a group, that a key is not for.
func (l *Locator) reach(c echo.Context, ids ...string) *wire.Problem {
	k := keyOf(c)
	if i := slices.IndexFunc(ids, func(id string) bool { return !k.reaches(id) }); i >= 0 {
		l.refusedKey(c.Request(), keyUsers, k.name, "target", httpd.Cut(ids[i]))
		return notReached()
	}
	return nil
}

func notReached() *wire.Problem {
	return wire.NewProblem(http.StatusForbidden, wire.CodeForbidden, "this API key is for other users")
}

// everybody is what reach is for acts that are about all users, or about the cluster.
func (l *Locator) everybody(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if k := keyOf(c); k.users != nil {
			l.refusedKey(c.Request(), keyUsers, k.name)
			return wire.NewProblem(http.StatusForbidden, wire.CodeForbidden, "this API key is for some users only, and this is about all of them")
		}
		return next(c)
	}
}

// noName is of a key that is not known.
const noName = ""

// refusedKey counts a refusal, and tells the log what the caller is not told.
func (l *Locator) refusedKey(r *http.Request, reason, name string, more ...any) {
	l.metrics.refused.WithLabelValues(credentialKey, reason).Inc()
	if skipped, say := l.refusals.Next(credentialKey + reason); say {
		log, path := l.log.With(more...), r.URL.Path
		if parts := strings.SplitN(path, "/", 4); name == noName && len(parts) > 3 {
			path = strings.Join(parts[:3], "/") // what was called, and not with what: a key may stand there
		}
		log.Info("an API key is refused", "event", "api_key_refused", "reason", reason, "key", name, "remote", r.RemoteAddr,
			"method", r.Method, "path", httpd.Cut(path), "skipped", skipped)
	}
}

// completeAPIKeys checks what says which keys there are.
func (c *Config) completeAPIKeys() error {
	c.APIKeys = slices.Clone(c.APIKeys)
	for i, k := range c.APIKeys {
		if c.APIKeys[i] = strings.TrimSpace(k); c.APIKeys[i] == "" {
			return config.Errorf("DIALRING_API_KEYS has an empty key: remove the stray comma")
		}
	}
	switch {
	case len(c.APIKeys) > 0 || c.APIKeysFile != "":
	case c.dev:
		c.APIKeys = []string{"dev"}
	default:
		return config.Errorf("DIALRING_API_KEYS or DIALRING_API_KEYS_FILE is required: the keys with which services may push (or DIALRING_DEV=true to try things on this machine)")
	}
	return nil
}
