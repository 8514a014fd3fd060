package locator

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// jwksIssuer serves a key set, or what is set in its place.
type jwksIssuer struct {
	url  string
	key  *ecdsa.PrivateKey
	set  string // with key as kid "k1"
	body atomic.Pointer[string]
	asks atomic.Int64
}

func startIssuer(t *testing.T) *jwksIssuer {
	t.Helper()
	i := &jwksIssuer{}
	var err error
	if i.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	i.set = fmt.Sprintf(`{"keys":[%s]}`, ecJWK(t, i.key, "k1", ""))
	i.body.Store(&i.set)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		i.asks.Add(1)
		if b := *i.body.Load(); b == "500" {
			http.Error(w, b, http.StatusInternalServerError)
		} else {
			_, _ = w.Write([]byte(b))
		}
	}))
	t.Cleanup(s.Close)
	i.url = s.URL
	return i
}

func ecJWK(t *testing.T, key *ecdsa.PrivateKey, kid, more string) string {
	t.Helper()
	b, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	return fmt.Sprintf(`{"kty":"EC","crv":"P-256","kid":%q,"x":%q,"y":%q%s}`, kid, b64(b[1:33]), b64(b[33:]), more)
}

func (i *jwksIssuer) token(t *testing.T, kid string) string {
	t.Helper()
	token := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{"sub": "alice", "exp": time.Now().Add(time.Hour).Unix()})
	token.Header["kid"] = kid
	signed, err := token.SignedString(i.key)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func reasonFor(t *testing.T, u *userTokens, token string) string {
	t.Helper()
	_, err := u.caller(token)
	if err == nil {
		return ""
	}
	var e *tokenError
	if !errors.As(err, &e) {
		t.Fatal(err)
	}
	return e.reason
}

// What an issuer answers in place of its set takes no key away, whoever made us ask.
func TestJWKSKeptThroughFaults(t *testing.T) {
	for name, body := range map[string]string{
		"an error of its own": `{"error":"temporarily unavailable"}`, "null": "null", "no keys": `{"keys":[]}`, "HTML": "<html>", "a fault": "500", "nothing": "", "keys of another kind": `{"keys":{"k1":1}}`,
		"a key of no kind": `{"keys":[{"kid":"k1"}]}`, "an unknown curve": `{"keys":[{"kty":"EC","crv":"secp256k1","kid":"k1","x":"AA","y":"AA"}]}`, "an unknown kind": `{"keys":[{"kty":"AKP","kid":"k1","pub":"AA"}]}`,
		"a broken key": `{"keys":[{"kty":"EC","crv":"P-256","kid":"k1","x":"AA"}]}`, "a key for agreement": `{"keys":[{"kty":"OKP","crv":"X25519","kid":"k1","x":"3p7bfXt9wbTTW2HC7OQ1Nz-DQ8hbeGdNrfx-FG-IK08"}]}`,
		"a symmetric key": `{"keys":[{"kty":"oct","kid":"k1","k":"c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTMyIQ"}]}`,
		"too much":        `{"keys":[],"x":"` + strings.Repeat("x", maxJWKS) + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i, log := startIssuer(t), &logBuffer{}
			u, err := newUserTokens(t.Context(), &Config{UserJWKSURL: i.url, Log: log.logger()})
			if err != nil {
				t.Fatal(err)
			}
			good := i.token(t, "k1")
			if r := reasonFor(t, u, good); r != "" {
				t.Fatalf("a good token is refused: %s", r)
			}
			i.body.Store(&body)
			if r := reasonFor(t, u, i.token(t, "unknown")); r != tokenKey {
				t.Errorf("an unknown key: %q", r)
			}
			if n := i.asks.Load(); n != 2 {
				t.Errorf("the issuer was asked %d times", n)
			}
			if r := reasonFor(t, u, good); r != "" {
				t.Errorf("then a good token is refused: %s", r)
			}
			if len(log.lines("event=jwks", "going on with the last one")) != 1 {
				t.Errorf("the log says %s", log.lines("event=jwks"))
			}
		})
	}
}

// Until there is a set nobody is told that his token is bad: clients would stop for good.
func TestJWKSNotFetchedYet(t *testing.T) {
	t.Parallel()
	i, log := startIssuer(t), &logBuffer{}
	down := "500"
	i.body.Store(&down)
	l := runLocator(t, func(c *Config) { c.UserJWKSURL, c.UserJWTSecret, c.Log = i.url, "", log.logger() })
	locate := func() (int, string) {
		req, err := http.NewRequest("POST", "http://"+l.addrs.Listen+"/v1/locate", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+i.token(t, "k1"))
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var p struct{ Code string }
		_ = json.NewDecoder(resp.Body).Decode(&p)
		return resp.StatusCode, p.Code + " " + resp.Header.Get("Retry-After")
	}
	eventually(t, "without a set a token is not judged", func() bool { // the locator may only just have started
		status, says := locate()
		return status == 503 && says == "store_unavailable 5"
	})
	if len(log.lines("event=jwks", "nobody is let in")) == 0 {
		t.Error("the log does not say that nobody is let in")
	}
	i.body.Store(&i.set)
	eventually(t, "the set is fetched without anybody's token", func() bool {
		_, says := locate()
		return strings.HasPrefix(says, "no_nodes") // its token is good, and there is no node
	})
}

// A key of a set is judged as one of a file is.
func TestJWKSWeakKeys(t *testing.T) {
	t.Parallel()
	i, log := startIssuer(t), &logBuffer{}
	strong, err := rsa.GenerateKey(rand.Reader, 2048) // Go makes no weaker ones; that its n is cut is all that is looked at
	if err != nil {
		t.Fatal(err)
	}
	all := fmt.Sprintf(`{"keys":[{"kty":"EC","crv":"P-256","kid":"broken","x":"AA"},{"kid":"nothing"},%s,%s,%s,%s,{"kty":"RSA","kid":"weak","e":"AQAB","n":%q},{"kty":"RSA","kid":"padded","e":"AQAB","n":%q}]}`, ecJWK(t, i.key, "k1", ""), ecJWK(t, i.key, "sig", `,"use":"sig","key_ops":["verify"]`), ecJWK(t, i.key, "enc", `,"use":"enc"`),
		ecJWK(t, i.key, "ops", `,"key_ops":["deriveKey"]`), base64.RawURLEncoding.EncodeToString(strong.N.Bytes()[:128]), base64.URLEncoding.EncodeToString(strong.N.Bytes()))
	i.body.Store(&all)
	u, err := newUserTokens(t.Context(), &Config{UserJWKSURL: i.url, Log: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	for kid, want := range map[string]string{"k1": "", "sig": "", "enc": tokenKey, "ops": tokenKey} {
		if r := reasonFor(t, u, i.token(t, kid)); r != want {
			t.Errorf("the key %s: %q, want %q", kid, r, want)
		}
	}
	token := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.MapClaims{"sub": "alice", "exp": time.Now().Add(time.Hour).Unix()})
	token.Header["kid"] = "weak"
	signed, err := token.SignedString(strong)
	if err != nil {
		t.Fatal(err)
	}
	if r := reasonFor(t, u, signed); r != tokenKey {
		t.Errorf("the weak key: %q", r)
	}
	padded := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.MapClaims{"sub": "alice", "exp": time.Now().Add(time.Hour).Unix()})
	padded.Header["kid"] = "padded"
	if signed, err = padded.SignedString(strong); err != nil {
		t.Fatal(err)
	}
	if r := reasonFor(t, u, signed); r != "" {
		t.Errorf("a key in padded base64: %q", r)
	}
	for _, kid := range []string{"enc", "ops", "weak", "broken", "nothing"} {
		if len(log.lines("event=jwk_unused", "kid="+kid)) == 0 {
			t.Errorf("the log does not say that %s is not used", kid)
		}
	}
}
