package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/dialring/dialring/internal/config"
	"github.com/dialring/dialring/internal/wire"
	"github.com/dialring/dialring/locator"
	"github.com/dialring/dialring/wsnode"
)

const inprocSecret = "0123456789abcdef0123456789abcdef"

// inprocIssuer is a locator outside development mode without nodes, a process. Whether it
// accepts a token shows in its answer: 503 no_nodes, or 401.
type inprocIssuer struct {
	addr, admin string
	log         *inprocLog
	shown       []string // tokens that were refused
}

func inprocIssue(t *testing.T, c locator.Config) *inprocIssuer {
	t.Helper()
	i := &inprocIssuer{log: newInprocLog()}
	t.Cleanup(func() { // when the process has ended, and all of its log is here
		if l := append(i.log.find("event=panic "), i.log.find("event=internal ")...); len(l) > 0 {
			t.Errorf("the log has %s", l)
		}
		for _, token := range i.shown {
			if l := i.log.find(token); len(l) > 0 {
				t.Errorf("the log has a token: %s", l[0])
			}
		}
	})
	c.APIKeys = []string{"key"}
	l := startProcess(t, i.log, c)
	i.addr, i.admin = l.addr, l.admin
	inprocAwaitLocator(t, i.addr)
	return i
}

func (i *inprocIssuer) check(t *testing.T, token string, good bool) {
	t.Helper()
	a := inprocDo(t, "POST", "http://"+i.addr+"/v1/locate?user=mallory", nil, "Authorization", "Bearer "+token)
	if good {
		inprocProblem(t, a, 503, wire.CodeNoNodes)
		return
	}
	inprocProblem(t, a, 401, wire.CodeUnauthorized)
	if a.header.Get("WWW-Authenticate") == "" {
		t.Error("401 without WWW-Authenticate")
	}
	if len(token) > 40 {
		if bytes.Contains(a.body, []byte(token)) {
			t.Error("the token is in the answer")
		}
		i.shown = append(i.shown, token)
	}
}

// inprocClaims are good ones, changed; nil takes one away.
func inprocClaims(change map[string]any) map[string]any {
	c := map[string]any{"sub": "alice", "exp": time.Now().Add(time.Hour).Unix()}
	for k, v := range change {
		if c[k] = v; v == nil {
			delete(c, k)
		}
	}
	return c
}

func TestTokenClaims(t *testing.T) {
	t.Parallel()
	i := inprocIssue(t, locator.Config{UserJWTSecret: inprocSecret})
	now := time.Now().Unix()
	for name, x := range map[string]struct {
		change map[string]any
		good   bool
	}{
		"good":                      {nil, true},
		"claims of others":          {map[string]any{"aud": "x", "iss": "y", "role": []string{"a"}, "dev": "d"}, true},
		"longest sub":               {map[string]any{"sub": strings.Repeat("u", 128)}, true},
		"sub of emoji":              {map[string]any{"sub": "😀"}, true},
		"exp with a fraction":       {map[string]any{"exp": float64(now) + 3600.5}, true},
		"expired 30 s ago":          {map[string]any{"exp": now - 30}, true},
		"expired 61 s ago":          {map[string]any{"exp": now - 61}, false},
		"expired long ago":          {map[string]any{"exp": 1}, false},
		"exp 0":                     {map[string]any{"exp": 0}, false},
		"exp below 0":               {map[string]any{"exp": -now}, false},
		"no exp":                    {map[string]any{"exp": nil}, false},
		"text exp":                  {map[string]any{"exp": "9999999999"}, false},
		"exp of words":              {map[string]any{"exp": "tomorrow"}, false},
		"exp true":                  {map[string]any{"exp": true}, false},
		"exp of a list":             {map[string]any{"exp": []int64{now + 100}}, false},
		"exp beyond all time":       {map[string]any{"exp": json.RawMessage("1e300")}, false},
		"exp beyond 64 bits":        {map[string]any{"exp": json.RawMessage("9223372036854775808")}, false},
		"exp beyond all numbers":    {map[string]any{"exp": json.RawMessage("1e999")}, false},
		"not yet good":              {map[string]any{"nbf": now + 3600}, false},
		"good in 30 s":              {map[string]any{"nbf": now + 30}, true},
		"good in 2 min":             {map[string]any{"nbf": now + 120}, false},
		"text nbf":                  {map[string]any{"nbf": "1"}, false},
		"issued long ago":           {map[string]any{"iat": 1}, true},
		"issued in 30 s":            {map[string]any{"iat": now + 30}, true},
		"issued in 2 min":           {map[string]any{"iat": now + 120}, false}, // it would outlast a revocation
		"issued in milliseconds":    {map[string]any{"iat": now * 1000}, false},
		"text iat":                  {map[string]any{"iat": "1"}, false},
		"good since now":            {map[string]any{"nbf": now}, true},
		"no sub":                    {map[string]any{"sub": nil}, false},
		"empty sub":                 {map[string]any{"sub": ""}, false},
		"sub of a number":           {map[string]any{"sub": 7}, false},
		"sub of a list":             {map[string]any{"sub": []string{"alice"}}, false},
		"sub with a newline":        {map[string]any{"sub": "a\nb"}, false},
		"sub with NUL":              {map[string]any{"sub": "a\x00"}, false},
		"sub with a C1 control":     {map[string]any{"sub": "a\u0085"}, false},
		"sub of 129 bytes":          {map[string]any{"sub": strings.Repeat("u", 129)}, false},
		"a token of more than 8 KB": {map[string]any{"x": strings.Repeat("x", 10_000)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			i.check(t, inprocToken(t, jwt.SigningMethodHS256, []byte(inprocSecret), nil, inprocClaims(x.change)), x.good)
		})
	}
	good := inprocToken(t, jwt.SigningMethodHS256, []byte(inprocSecret), nil, inprocClaims(nil))
	parts := strings.Split(good, ".")
	raw := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	_, private, err := inprocEd25519()
	if err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{
		"nothing":                "",
		"nonsense":               "nonsense",
		"the api key":            "key",
		"three dots":             "...",
		"HS384":                  inprocToken(t, jwt.SigningMethodHS384, []byte(inprocSecret), nil, inprocClaims(nil)),
		"HS512":                  inprocToken(t, jwt.SigningMethodHS512, []byte(inprocSecret), nil, inprocClaims(nil)),
		"EdDSA":                  inprocToken(t, jwt.SigningMethodEdDSA, private, nil, inprocClaims(nil)),
		"alg none":               inprocToken(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, nil, inprocClaims(nil)),
		"alg None":               raw(`{"alg":"None"}`) + "." + parts[1] + ".",
		"alg nONE, signature":    raw(`{"alg":"nONE"}`) + "." + parts[1] + "." + parts[2],
		"no alg":                 raw(`{"typ":"JWT"}`) + "." + parts[1] + "." + parts[2],
		"alg of a number":        raw(`{"alg":256}`) + "." + parts[1] + "." + parts[2],
		"another secret":         inprocToken(t, jwt.SigningMethodHS256, []byte(strings.ToUpper(inprocSecret)), nil, inprocClaims(nil)),
		"empty secret":           inprocToken(t, jwt.SigningMethodHS256, []byte{}, nil, inprocClaims(nil)),
		"no signature":           parts[0] + "." + parts[1] + ".",
		"other claims":           parts[0] + "." + raw(`{"sub":"bob","exp":9999999999}`) + "." + parts[2],
		"padded":                 good + "=",
		"a part more":            good + ".x",
		"claims that are a list": parts[0] + "." + raw(`[]`) + "." + parts[2],
		"kid of a path":          inprocToken(t, jwt.SigningMethodHS256, []byte{}, map[string]any{"kid": "../../../dev/null"}, inprocClaims(nil)),
		"nested header":          raw(`{"alg":"HS256","x":`+inprocNested(2000)+`}`) + "." + parts[1] + "." + parts[2],
	} {
		t.Run(name, func(t *testing.T) { i.check(t, token, false) })
	}
	t.Run("1 MB", func(t *testing.T) {
		conn := inprocConnect(t, i.addr)
		sent := make(chan struct{})
		go func() { // the locator does not read all of it
			defer close(sent)
			_, _ = conn.Write([]byte("POST /v1/locate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + strings.Repeat("a", 1<<20) + "\r\n\r\n"))
		}()
		if a, err := conn.tryAnswer(); err == nil && (a.status < 400 || a.status >= 500) {
			t.Errorf("a token of 1 MB: %d %s", a.status, a.body)
		}
		_ = conn.Close()
		<-sent
		i.check(t, good, true)
	})
	t.Run("the log says why", func(t *testing.T) {
		// A few for each reason, the first at once.
		for reason, more := range map[string]string{"expired": "user=alice", "early": "user=alice", "no_expiry": "user=alice", "malformed": "why=", "algorithm": "alg=HS384",
			"signature": "user=\"\"", "user": "remote=127.0.0.1:", "missing": "remote=127.0.0.1:"} {
			if reason == "missing" {
				inprocDo(t, "POST", "http://"+i.addr+"/v1/locate", nil)
			}
			i.log.await(t, "event=token_refused", "level=INFO", "reason="+reason+" ")
			if reason == "algorithm" || reason == "missing" || reason == "signature" {
				continue // which one of several is logged is chance
			}
			i.log.await(t, "event=token_refused", "reason="+reason+" ", more)
		}
	})
	t.Run("the user in the query", func(t *testing.T) {
		for _, h := range [][]string{nil, {"Authorization", "Basic YWxpY2U6"}, {"Authorization", good}} {
			inprocProblem(t, inprocDo(t, "POST", "http://"+i.addr+"/v1/locate?user=alice", nil, h...), 401, wire.CodeUnauthorized)
		}
		inprocProblem(t, inprocDo(t, "POST", "http://"+i.addr+"/v1/locate?access_token="+good, nil), 401, wire.CodeUnauthorized)
	})
	t.Run("lower case bearer", func(t *testing.T) {
		inprocProblem(t, inprocDo(t, "GET", "http://"+i.addr+"/v1/locate", nil, "Authorization", "bearer "+good), 503, wire.CodeNoNodes)
	})
	t.Run("not for services", func(t *testing.T) {
		inprocProblem(t, inprocDo(t, "GET", "http://"+i.addr+"/v1/ring", nil, "Authorization", "Bearer "+good), 401, wire.CodeUnauthorized)
		inprocProblem(t, inprocDo(t, "GET", "http://"+i.addr+"/v1/ring", nil, "Authorization", "Bearer dev"), 401, wire.CodeUnauthorized)
	})
}

// TestTokenFlood: who sends many bad tokens does not fill the log, and what the log
// has of them is cut.
func TestTokenFlood(t *testing.T) {
	i := inprocIssue(t, locator.Config{UserJWTSecret: inprocSecret})
	long := strings.Repeat("k", 2000) + "end\n\x1b"
	bad := inprocToken(t, jwt.SigningMethodHS256, []byte("another secret of thirty-two byte"), map[string]any{"kid": long}, inprocClaims(nil))
	start := time.Now()
	for range 300 {
		i.check(t, bad, false)
	}
	inprocEventually(t, "the first five are in the log", func() bool { return len(i.log.find("event=token_refused", "reason=signature")) >= 5 })
	lines := i.log.find("event=token_refused", "reason=signature")
	if n, most := len(lines), 5+2+int(time.Since(start)/time.Second); n < 5 || n > most {
		t.Errorf("%d lines of 300 refusals, want at most %d", n, most)
	}
	for _, line := range lines {
		if len(line) > 600 || strings.Contains(line, "end") || !strings.Contains(line, "kid=kkk") {
			t.Errorf("a line of %d bytes: %s", len(line), line)
		}
	}
	inprocEventually(t, "the log tells how many were left out", func() bool {
		i.check(t, bad, false)
		for _, line := range i.log.find("event=token_refused", "reason=signature", "skipped=") {
			if !strings.Contains(line, "skipped=0") {
				return true
			}
		}
		return false
	})
}

// TestTokenSecrets: with two secrets tokens of both are good, and no others.
func TestTokenSecrets(t *testing.T) {
	t.Parallel()
	const previous = "the secret of before, 32 bytes xx"
	i := inprocIssue(t, locator.Config{UserJWTSecret: inprocSecret, UserJWTSecretPrevious: previous})
	for secret, good := range map[string]bool{inprocSecret: true, previous: true, "": false, inprocSecret + previous: false, inprocSecret + "," + previous: false, previous[:32]: false} {
		i.check(t, inprocToken(t, jwt.SigningMethodHS256, []byte(secret), nil, inprocClaims(nil)), good)
	}
	i.check(t, inprocToken(t, jwt.SigningMethodHS384, []byte(previous), nil, inprocClaims(nil)), false)
	i.check(t, inprocToken(t, jwt.SigningMethodHS256, []byte(previous), nil, inprocClaims(map[string]any{"exp": 1})), false)
}

// TestTokenIssuer: of an issuer that signs for others as well only what is for this
// cluster is good; the log and the metric say what was wrong, and the answer does not.
func TestTokenIssuer(t *testing.T) {
	t.Parallel()
	const audience, issuer = "push.example.com", "https://login.example.com/"
	i := inprocIssue(t, locator.Config{UserJWTSecret: inprocSecret, UserJWTAudience: audience, UserJWTIssuer: issuer})
	for name, x := range map[string]struct {
		header, claims map[string]any
		reason         string
	}{
		"both":               {nil, map[string]any{"aud": audience, "iss": issuer}, ""},
		"one of several":     {nil, map[string]any{"aud": []string{"x", audience}, "iss": issuer}, ""},
		"neither":            {nil, nil, "issuer"},
		"no audience":        {nil, map[string]any{"iss": issuer}, "audience"},
		"another audience":   {nil, map[string]any{"aud": "x", "iss": issuer}, "audience"},
		"another issuer":     {nil, map[string]any{"aud": audience, "iss": issuer + "x"}, "issuer"},
		"something critical": {map[string]any{"crit": []string{"x"}, "x": 1}, map[string]any{"aud": audience, "iss": issuer}, "critical"},
	} {
		t.Run(name, func(t *testing.T) {
			token := inprocToken(t, jwt.SigningMethodHS256, []byte(inprocSecret), x.header, inprocClaims(x.claims))
			i.check(t, token, x.reason == "")
			if x.reason == "" {
				return
			}
			if a := inprocDo(t, "POST", "http://"+i.addr+"/v1/locate", nil, "Authorization", "Bearer "+token); !bytes.Contains(a.body, []byte("the user token is not valid")) {
				t.Errorf("the answer is %s", a.body)
			}
			user := "user=alice"
			if x.reason == "critical" { // its signature was not looked at
				user = `user=""`
			}
			if len(i.log.find("event=token_refused", "reason="+x.reason+" ", user)) == 0 {
				t.Errorf("the log has no refusal for %s of %s: %q", x.reason, user, i.log.find("event=token_refused"))
			}
			metrics := inprocDo(t, "GET", "http://"+i.admin+"/metrics", nil).body
			if bytes.Contains(metrics, []byte(`dialring_unauthorized_total{credential="user_token",reason="`+x.reason+"\"} 0\n")) ||
				!bytes.Contains(metrics, []byte(`dialring_unauthorized_total{credential="user_token",reason="`+x.reason+`"}`)) {
				t.Errorf("%s was not counted", x.reason)
			}
		})
	}
}

// TestInprocTokenUser has a locator outside development mode beside one within,
// which has a node in the ring: so the user of a token shows.
func TestInprocTokenUser(t *testing.T) {
	t.Parallel()
	c := inprocStart(t, locator.Config{UserJWTSecret: inprocSecret}, wsnode.Config{})
	l, err := locator.New(locator.Config{NATSURL: c.at.NATS, Listen: "127.0.0.1:0", AdminListen: "127.0.0.1:0",
		APIKeys: []string{"key"}, UserJWTSecret: inprocSecret, RatePerAddress: -1, Log: c.log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	inprocRun(t, "second locator", l.Run)
	at, err := l.Addrs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	inprocEventually(t, "the second locator is ready", func() bool { return inprocDo(t, "GET", "http://"+at.Listen+"/readyz", nil).status == 200 })
	bob := inprocToken(t, jwt.SigningMethodHS256, []byte(inprocSecret), nil, inprocClaims(map[string]any{"sub": "bob"}))
	for name, addr := range map[string]string{"normal": at.Listen, "development": c.at.Listen} {
		a := inprocDo(t, "POST", "http://"+addr+"/v1/locate?user=alice", strings.NewReader(`{"user":"alice","device":"web"}`), "Authorization", "Bearer "+bob)
		var r wire.LocateResponse
		inprocDecode(t, a.body, &r)
		c.issued.add(r.Ticket)
		if a.status != 200 || r.User != "bob" || r.Device != "web" {
			t.Fatalf("%s: located %q: %d %s", name, r.User, a.status, a.body)
		}
		x, conn := inprocRaw(t, c.nodes[0].at.Listen, newInprocDial(r.Ticket).String())
		if w := inprocOpened(t, x, conn); w.welcome.User != "bob" {
			t.Errorf("%s: welcome of %q", name, w.welcome.User)
		}
		// A wrong token is no reason to look at the query.
		a = inprocDo(t, "POST", "http://"+addr+"/v1/locate?user=alice", nil, "Authorization", "Bearer "+bob+"x")
		inprocProblem(t, a, 401, wire.CodeUnauthorized)
	}
	if len(c.log.find(bob)) > 0 {
		t.Error("the log has a user token")
	}
}

// inprocPEM writes a public key to a file.
func inprocPEM(t *testing.T, public any) (file string, text []byte) {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	text = pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	file = filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return file, text
}

func inprocNoError[V any](v V, err error) V {
	if err != nil {
		panic(err)
	}
	return v
}

func TestTokenPublicKey(t *testing.T) {
	t.Parallel()
	rsaKey, rsaOther := inprocNoError(rsa.GenerateKey(rand.Reader, 2048)), inprocNoError(rsa.GenerateKey(rand.Reader, 2048))
	p256, p384 := inprocNoError(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), inprocNoError(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	p256Other := inprocNoError(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	edPublic, ed, _ := inprocEd25519()
	_, edOther, _ := inprocEd25519()
	type signed struct {
		method jwt.SigningMethod
		key    any
	}
	all := map[string]signed{"RS256": {jwt.SigningMethodRS256, rsaKey}, "RS512": {jwt.SigningMethodRS512, rsaKey}, "PS256": {jwt.SigningMethodPS256, rsaKey},
		"RS256, other key": {jwt.SigningMethodRS256, rsaOther}, "ES256": {jwt.SigningMethodES256, p256}, "ES384": {jwt.SigningMethodES384, p384},
		"ES256, other key": {jwt.SigningMethodES256, p256Other}, "EdDSA": {jwt.SigningMethodEdDSA, ed}, "EdDSA, other key": {jwt.SigningMethodEdDSA, edOther},
		"none": {jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType}}
	for good, public := range map[string]any{"RS256": &rsaKey.PublicKey, "ES256": &p256.PublicKey, "ES384": &p384.PublicKey, "EdDSA": edPublic} {
		t.Run(good, func(t *testing.T) {
			file, text := inprocPEM(t, public)
			i := inprocIssue(t, locator.Config{UserJWTPublicKeyFile: file})
			try := maps.Clone(all)
			der, _ := pem.Decode(text)
			// The public key taken for a secret, in each form that one might have.
			for name, secret := range map[string][]byte{"PEM": text, "PEM without newline": bytes.TrimSpace(text), "DER": der.Bytes} {
				try["HS256 with the "+name] = signed{jwt.SigningMethodHS256, secret}
			}
			if k, ok := public.(ed25519.PublicKey); ok {
				try["HS256 with the key"] = signed{jwt.SigningMethodHS256, []byte(k)}
			}
			for name, s := range try {
				t.Run(name, func(t *testing.T) {
					i.check(t, inprocToken(t, s.method, s.key, nil, inprocClaims(nil)), name == good)
				})
			}
			t.Run("own jwk and jku", func(t *testing.T) {
				other := all[map[string]string{"RS256": "RS256, other key", "ES256": "ES256, other key", "ES384": "ES384", "EdDSA": "EdDSA, other key"}[good]]
				x := base64.RawURLEncoding.EncodeToString(edOther.Public().(ed25519.PublicKey))
				token := inprocToken(t, other.method, other.key, map[string]any{"jwk": map[string]any{"kty": "OKP", "crv": "Ed25519", "x": x},
					"jku": "http://" + i.addr + "/jwks", "x5u": "http://" + i.addr, "x5c": []string{x}, "kid": "../../etc/passwd"}, inprocClaims(nil))
				i.check(t, token, good == "ES384") // there it is the right key, and the rest is ignored
			})
		})
	}
}

// TestInprocTokenSettings has settings that cannot be: the error is one of
// settings and names the one to change, and never shows a secret.
func TestInprocTokenSettings(t *testing.T) {
	t.Parallel()
	weak, _ := inprocPEM(t, &inprocNoError(ecdsa.GenerateKey(elliptic.P224(), rand.Reader)).PublicKey)
	private := filepath.Join(t.TempDir(), "private.pem")
	der := inprocNoError(x509.MarshalPKCS8PrivateKey(inprocNoError(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))))
	if err := os.WriteFile(private, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]locator.Config{
		"USER_JWT_SECRET":          {UserJWTSecret: config.Secret(inprocSecret[:31])},
		"USER_JWT_SECRET_PREVIOUS": {UserJWTSecret: inprocSecret, UserJWTSecretPrevious: config.Secret(inprocSecret[:31])},
		"USER_JWT_PUBLIC_KEY_FILE": {UserJWTPublicKeyFile: filepath.Join(t.TempDir(), "none.pem")},
		"PUBLIC_KEY_FILE":          {UserJWTPublicKeyFile: weak},
		"KEY_FILE":                 {UserJWTPublicKeyFile: private},
		"USER_JWKS_URL":            {UserJWTSecret: inprocSecret, UserJWKSURL: "https://example.com/jwks"},
		"set one of":               {},
	} {
		t.Run(name, func(t *testing.T) {
			l := newInprocLog()
			c.Listen, c.AdminListen, c.NATSListen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
			c.NATSToken, c.DataDir, c.APIKeys, c.Log = "nats-token", t.TempDir(), []string{"key"}, l.logger()
			x, err := locator.New(c)
			if err == nil {
				ctx, cancel := context.WithTimeout(t.Context(), inprocPatience)
				defer cancel()
				err = x.Run(ctx)
			}
			var settings *config.Error
			if err == nil || !strings.Contains(err.Error(), name) || !asError(err, &settings) || strings.Contains(err.Error(), inprocSecret[:31]) {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

// inprocJWKS is a key set, as JSON.
func inprocJWKS(t *testing.T, keys ...map[string]any) []byte {
	t.Helper()
	b, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		t.Fatal(err)
	}
	return b
}
