package e2e

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/dialring/dialring/internal/wire"
	"github.com/dialring/dialring/locator"
	"github.com/dialring/dialring/wsnode"
)

func asError[E error](err error, target *E) bool { return errors.As(err, target) }

// inprocKeySet serves a key set that can change, and counts how often it is
// fetched.
type inprocKeySet struct {
	url     string
	latency atomic.Int64 // of each answer
	fetched atomic.Int64
	set     atomic.Pointer[[]byte]
}

func inprocServeKeys(t *testing.T, keys ...map[string]any) *inprocKeySet {
	k := &inprocKeySet{}
	k.put(t, keys...)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		k.fetched.Add(1)
		time.Sleep(time.Duration(k.latency.Load()))
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(*k.set.Load())
	}))
	t.Cleanup(s.Close)
	k.url = s.URL
	return k
}

func (k *inprocKeySet) put(t *testing.T, keys ...map[string]any) {
	b := inprocJWKS(t, keys...)
	k.set.Store(&b)
}

func inprocB64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func inprocOKP(kid string, public ed25519.PublicKey) map[string]any {
	return map[string]any{"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": kid, "x": inprocB64(public)}
}

func TestTokenJWKS(t *testing.T) {
	t.Parallel()
	public, key, _ := inprocEd25519()
	nextPublic, next, _ := inprocEd25519()
	_, stranger, _ := inprocEd25519()
	rsaKey := inprocNoError(rsa.GenerateKey(rand.Reader, 2048))
	rsaJWK := map[string]any{"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "rsa", "n": inprocB64(rsaKey.N.Bytes()), "e": inprocB64(big.NewInt(int64(rsaKey.E)).Bytes())}
	oct := map[string]any{"kty": "oct", "kid": "shared", "alg": "HS256", "k": inprocB64([]byte(inprocSecret))}
	keys := inprocServeKeys(t, inprocOKP("one", public), rsaJWK, oct)
	theirs := inprocServeKeys(t, inprocOKP("one", stranger.Public().(ed25519.PublicKey)))
	i := inprocIssue(t, locator.Config{UserJWKSURL: keys.url})
	started := time.Now() // the fetch at start does not count
	token := func(m jwt.SigningMethod, key any, header map[string]any) string {
		return inprocToken(t, m, key, header, inprocClaims(nil))
	}
	kid := func(s string) map[string]any { return map[string]any{"kid": s} }

	good, rsaGood := token(jwt.SigningMethodEdDSA, key, kid("one")), token(jwt.SigningMethodRS256, rsaKey, kid("rsa"))
	i.check(t, good, true)
	i.check(t, rsaGood, true)
	if n := keys.fetched.Load(); n != 1 {
		t.Errorf("the set was fetched %d times", n)
	}
	for name, x := range map[string]string{
		"another's key":         token(jwt.SigningMethodEdDSA, stranger, kid("one")),
		"key of the other kid":  token(jwt.SigningMethodEdDSA, key, kid("rsa")),
		"HS256, public key":     token(jwt.SigningMethodHS256, []byte(public), kid("one")),
		"HS256, symmetric key":  token(jwt.SigningMethodHS256, []byte(inprocSecret), kid("shared")),
		"none":                  token(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, kid("one")),
		"PS256 of an RS256 key": token(jwt.SigningMethodPS256, rsaKey, kid("rsa")),
		"own jwk":               token(jwt.SigningMethodEdDSA, stranger, map[string]any{"kid": "one", "jwk": inprocOKP("one", stranger.Public().(ed25519.PublicKey))}),
		"own jku":               token(jwt.SigningMethodEdDSA, stranger, map[string]any{"kid": "one", "jku": theirs.url, "x5u": theirs.url}),
		"no kid, wrong key":     token(jwt.SigningMethodEdDSA, stranger, nil),
		"no kid, PS256":         token(jwt.SigningMethodPS256, rsaKey, nil), // the key says RS256
		"no kid, HS256":         token(jwt.SigningMethodHS256, []byte(inprocSecret), nil),
		"kid of a number":       token(jwt.SigningMethodEdDSA, key, map[string]any{"kid": 1}),
		"expired":               inprocToken(t, jwt.SigningMethodEdDSA, key, kid("one"), inprocClaims(map[string]any{"exp": time.Now().Unix() - 70})),
	} {
		t.Run(name, func(t *testing.T) { i.check(t, x, false) })
	}
	if n := keys.fetched.Load(); n != 1 {
		t.Errorf("tokens with known kids had the set fetched; %d times in all", n)
	}
	if n := theirs.fetched.Load(); n != 0 {
		t.Errorf("the token's jku was fetched %d times", n)
	}

	// Rotation: the new key is there before tokens are signed with it.
	keys.put(t, inprocOKP("one", public), inprocOKP("two", nextPublic))
	i.check(t, token(jwt.SigningMethodEdDSA, next, kid("two")), true)
	i.check(t, good, true)
	if n := keys.fetched.Load(); n != 2 {
		t.Errorf("the set was fetched %d times, want 2", n)
	}
	i.check(t, rsaGood, false) // it is no longer in the set
	for _, k := range []string{"", "*", "one ", "ONE", "../one", "on\x00e"} {
		i.check(t, token(jwt.SigningMethodEdDSA, key, kid(k)), false)
	}

	// Strangers' kids do not become a flood of fetches, and hold up nobody.
	var wg sync.WaitGroup
	answers := make(chan inprocAnswer, 60)
	for n := range cap(answers) {
		x := token(jwt.SigningMethodEdDSA, stranger, kid(fmt.Sprintf("unknown-%d", n)))
		wg.Go(func() {
			answers <- inprocDo(t, "POST", "http://"+i.addr+"/v1/locate", nil, "Authorization", "Bearer "+x)
		})
	}
	wg.Wait()
	close(answers)
	for a := range answers {
		inprocProblem(t, a, 401, "unauthorized")
	}
	i.check(t, good, true)
	// One at once, and one more for each 30 s since.
	if n, most := keys.fetched.Load(), 2+int64(time.Since(started)/(30*time.Second)); n > most {
		t.Errorf("the set was fetched %d times, want at most %d", n, most)
	}
}

// TestTokenJWKSFar: a key server that takes its time, as one elsewhere
// does. Tokens with a new key wait for it, or are good soon; others do not wait.
func TestTokenJWKSFar(t *testing.T) {
	t.Parallel()
	public, key, _ := inprocEd25519()
	nextPublic, next, _ := inprocEd25519()
	keys := inprocServeKeys(t, inprocOKP("one", public))
	keys.latency.Store(int64(300 * time.Millisecond))
	i := inprocIssue(t, locator.Config{UserJWKSURL: keys.url})
	keys.put(t, inprocOKP("one", public), inprocOKP("two", nextPublic))
	token := inprocToken(t, jwt.SigningMethodEdDSA, next, map[string]any{"kid": "two"}, inprocClaims(nil))
	inprocEventually(t, "a token with the new key is good", func() bool {
		i.check(t, inprocToken(t, jwt.SigningMethodEdDSA, key, map[string]any{"kid": "one"}, inprocClaims(nil)), true)
		return inprocDo(t, "POST", "http://"+i.addr+"/v1/locate", nil, "Authorization", "Bearer "+token).status == 503
	})
}

// TestTokenJWKSAway: without the key server what is known stays good.
func TestTokenJWKSAway(t *testing.T) {
	t.Parallel()
	public, key, _ := inprocEd25519()
	good := inprocToken(t, jwt.SigningMethodEdDSA, key, map[string]any{"kid": "one"}, inprocClaims(nil))
	unknown := inprocToken(t, jwt.SigningMethodEdDSA, key, map[string]any{"kid": "two"}, inprocClaims(nil))
	t.Run("later", func(t *testing.T) {
		var away atomic.Bool
		set := inprocJWKS(t, inprocOKP("one", public))
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if away.Load() {
				http.Error(w, "{}", 500)
				return
			}
			_, _ = w.Write(set)
		}))
		t.Cleanup(s.Close)
		i := inprocIssue(t, locator.Config{UserJWKSURL: s.URL})
		i.check(t, good, true)
		away.Store(true)
		i.check(t, unknown, false) // has it fetched
		i.check(t, good, true)
	})
	t.Run("at start", func(t *testing.T) {
		var there atomic.Bool
		set := inprocJWKS(t, inprocOKP("one", public))
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if !there.Load() {
				http.Error(w, "not yet", http.StatusServiceUnavailable)
				return
			}
			_, _ = w.Write(set)
		}))
		t.Cleanup(s.Close)
		i := inprocIssue(t, locator.Config{UserJWKSURL: s.URL})
		there.Store(true)
		i.check(t, good, true)
	})
	t.Run("elsewhere", func(t *testing.T) {
		theirs := inprocServeKeys(t, inprocOKP("one", public))
		s := httptest.NewServer(http.RedirectHandler(theirs.url, http.StatusFound))
		t.Cleanup(s.Close)
		i := inprocIssue(t, locator.Config{UserJWKSURL: s.URL})
		a := inprocDo(t, "POST", "http://"+i.addr+"/v1/locate", nil, "Authorization", "Bearer "+good)
		if inprocProblem(t, a, 503, wire.CodeStoreUnavailable); a.header.Get("Retry-After") == "" { // there is no set to judge it by
			t.Error("503 without Retry-After")
		}
		if n := theirs.fetched.Load(); n != 0 {
			t.Errorf("a redirect was followed %d times", n)
		}
	})
}

// TestTokenRotation: while users connect all the time, their issuer publishes another
// key, signs with it, and takes the old one away. Nobody is refused, although the key
// server takes its time and many come with the new key before it is known.
func TestTokenRotation(t *testing.T) {
	t.Parallel()
	public, old, _ := inprocEd25519()
	nextPublic, next, _ := inprocEd25519()
	keys := inprocServeKeys(t, inprocOKP("one", public))
	keys.latency.Store(int64(300 * time.Millisecond))
	c := processes(t, locator.Config{UserJWKSURL: keys.url}, wsnode.Config{})
	type signer struct {
		kid string
		key ed25519.PrivateKey
	}
	var sign atomic.Pointer[signer]
	sign.Store(&signer{"one", old})
	var connected [2]atomic.Int64 // with each key
	stop := make(chan struct{})
	var users sync.WaitGroup
	for n := range 8 {
		users.Go(func() {
			for round := 0; ; round++ {
				select {
				case <-stop:
					return
				default:
				}
				s := sign.Load()
				token := inprocToken(t, jwt.SigningMethodEdDSA, s.key, map[string]any{"kid": s.kid}, inprocClaims(map[string]any{"sub": fmt.Sprintf("user-%d", n)}))
				a := inprocDo(t, "POST", "http://"+c.at.Listen+"/v1/locate?device=d", nil, "Authorization", "Bearer "+token)
				var loc wire.LocateResponse
				if a.status != 200 || json.Unmarshal(a.body, &loc) != nil {
					t.Errorf("a token of key %s: %d %s", s.kid, a.status, a.body)
					return
				}
				c.issued.add(loc.Ticket)
				if status := dialStatus(t, loc.URL, loc.Ticket); status != 101 {
					t.Errorf("a ticket that was got with key %s: %d", s.kid, status)
					return
				}
				connected[map[string]int{"one": 0, "two": 1}[s.kid]].Add(1)
			}
		})
	}
	more := func(key int) {
		t.Helper()
		from := connected[key].Load()
		inprocEventually(t, "users connect", func() bool { return t.Failed() || connected[key].Load() > from+40 })
	}
	more(0)
	keys.put(t, inprocOKP("one", public), inprocOKP("two", nextPublic))
	more(0)
	fetched := keys.fetched.Load()
	sign.Store(&signer{"two", next})
	more(1)
	if n := keys.fetched.Load() - fetched; n != 1 {
		t.Errorf("the new key had the set fetched %d times, want once", n)
	}
	keys.put(t, inprocOKP("two", nextPublic))
	more(1)
	close(stop)
	users.Wait()
}
