package locator

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/time/rate"
)

const (
	// jwksFetch bounds a fetch of the set.
	jwksFetch = 5 * time.Second
	// jwksRefresh is how often it is fetched in any case.
	jwksRefresh = time.Hour
	// jwksUnknown is how far apart fetches are that tokens with an unknown key cause.
	jwksUnknown = 30 * time.Second
	// jwksFirst is how far apart fetches are until one has succeeded.
	jwksFirst = 5 * time.Second
)

var (
	errNoKID      = errors.New("the token names no key") // all would be tried, without heed to their algorithm
	errNoSet      = errors.New("the key set has not been fetched yet")
	errUnknownKID = errors.New("the token names a key that is not in the set")
)

// jwks is a key set that is fetched at a URL: every hour, and when a token names a key that
// is not in it, then at most once in 30 s. Who names such a key while it is fetched waits
// for that: when an issuer begins to sign with another key, many do at once, and their
// tokens are good. It may be used concurrently.
type jwks struct {
	set   keyfunc.Keyfunc
	had   atomic.Bool // there was a set
	ctx   context.Context
	ended context.Context // one that has: to look at the set without fetching it

	limit *rate.Limiter

	mu       sync.Mutex
	fetching chan struct{} // closed when it is done; nil: none is
}

// newJWKS fetches the set, and again, until ctx ends. That it cannot be fetched is no
// error: it may be later, and until then nobody's token is judged (errNoSet). A document
// that is no set, or has no good key, changes nothing.
func newJWKS(ctx context.Context, c *Config) (*jwks, error) {
	j := &jwks{ctx: ctx, limit: rate.NewLimiter(rate.Every(jwksUnknown), 1)}
	shown, _, _ := strings.Cut(c.UserJWKSURL, "?") // a query may be a key to it
	ended, end := context.WithCancel(ctx)
	end()
	j.ended = ended
	var err error
	j.set, err = keyfunc.NewDefaultOverrideCtx(ctx, []string{c.UserJWKSURL}, keyfunc.Override{
		Client:            &http.Client{Transport: &jwksFetcher{log: c.Log, base: http.DefaultTransport.(*http.Transport).Clone()}, Timeout: jwksFetch, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		HTTPTimeout:       jwksFetch,
		RefreshInterval:   jwksRefresh,
		RefreshUnknownKID: rate.NewLimiter(rate.Inf, 1), // the limit is ours
		RateLimitWaitMax:  jwksFetch,                    // bounds the fetch itself, too
		RefreshErrorHandlerFunc: func(string) func(context.Context, error) {
			return func(_ context.Context, err error) {
				text := "the JWK set cannot be fetched; going on with the last one"
				if j.set == nil || !j.has() {
					text = "the JWK set cannot be fetched; until it can nobody is let in"
				}
				c.Log.Warn(text, "event", "jwks", "url", shown, "error", strings.ReplaceAll(err.Error(), c.UserJWKSURL, shown))
			}
		},
	})
	if err == nil && !j.has() {
		go j.first()
	}
	return j, err
}

// has tells whether there is a set, or was: one that came is never taken away.
func (j *jwks) has() bool {
	if j.had.Load() {
		return true
	}
	keys, err := j.set.Storage().KeyReadAll(j.ctx)
	if err != nil || len(keys) == 0 {
		return false
	}
	j.had.Store(true)
	return true
}

// first fetches the set until it has one.
func (j *jwks) first() {
	t := time.NewTicker(jwksFirst)
	defer t.Stop()
	for !j.has() {
		select {
		case <-t.C:
			_, _ = j.set.KeyfuncCtx(j.ctx)(&jwt.Token{Header: map[string]any{"kid": "-", "alg": "ES256"}}) // fetches, since the key is unknown
		case <-j.ctx.Done():
			return
		}
	}
}

// key is the jwt.Keyfunc.
func (j *jwks) key(t *jwt.Token) (any, error) {
	if kid, _ := t.Header["kid"].(string); kid == "" {
		return nil, errNoKID
	}
	key, err := j.find(t)
	if errors.Is(err, errUnknownKID) && !j.has() {
		return nil, errNoSet
	}
	return key, err
}

// find takes the key out of the set, fetched anew if it is not there.
func (j *jwks) find(t *jwt.Token) (any, error) {
	if key, err := j.look(t); !errors.Is(err, errUnknownKID) {
		return key, err
	}
	j.mu.Lock()
	if done := j.fetching; done != nil {
		j.mu.Unlock()
		<-done // after jwksFetch at the latest
		return j.look(t)
	}
	if !j.limit.Allow() {
		j.mu.Unlock()
		return j.look(t) // it may have come just now
	}
	done := make(chan struct{})
	j.fetching = done
	j.mu.Unlock()
	defer func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.fetching = nil
		close(done)
	}()
	_, _ = j.set.KeyfuncCtx(j.ctx)(t) // fetches, since the key is unknown
	return j.look(t)
}

// look takes the key out of the set as it is.
func (j *jwks) look(t *jwt.Token) (any, error) {
	key, err := j.set.KeyfuncCtx(j.ended)(t)
	if errors.Is(err, context.Canceled) { // it would have fetched
		return nil, errUnknownKID
	}
	return key, err
}
