package ticket

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// book is a Keys of made-up content.
type book struct {
	keys  map[string]ed25519.PublicKey
	skew  map[string]time.Duration
	owner string
	asked []string
}

func (b *book) Key(kid string) (ed25519.PublicKey, string) {
	b.asked = append(b.asked, kid)
	return b.keys[kid], b.owner
}
func (b *book) Skew(kid string) time.Duration { return b.skew[kid] }

var start = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

var alice = Ticket{User: "alice", Device: "web-1", Node: "ws-1", Epoch: 42}

// setup is a signer, and a verifier for ws-1 that knows its key.
func setup(t *testing.T) (*Signer, *Verifier, *book) {
	t.Helper()
	s := NewSigner()
	b := &book{keys: map[string]ed25519.PublicKey{s.KID: s.Public}, skew: map[string]time.Duration{}, owner: "locator:1"}
	return s, NewVerifier("ws-1", b, 1000), b
}

func TestTicket(t *testing.T) {
	s, v, _ := setup(t)
	for _, user := range []string{"alice", "a/b", "日本 \"x\"", strings.Repeat("u", 128), "*.>"} {
		want := Ticket{User: user, Device: strings.Repeat("d", 64), Node: "ws-1", Epoch: 1<<64 - 1}
		token := s.Ticket(want, start)
		if len(token) > MaxBytes {
			t.Errorf("%d bytes, the contract allows %d", len(token), MaxBytes)
		}
		want.Issued = start
		if got, err := v.Ticket(token, start); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v %v, signed %+v", got, err, want)
		}
		if _, err := v.Ticket(token, start); !errors.Is(err, ErrUsed) {
			t.Errorf("a second use: %v", err)
		}
	}
	if a, b := s.Ticket(alice, start), s.Ticket(alice, start); a == b {
		t.Error("two tickets are the same: the second would count as used")
	}
	// The longest ids that the contract allows fit a ticket, whatever they cost in JSON.
	for _, user := range []string{strings.Repeat("<", 128), `"` + strings.Repeat("<", 127), strings.Repeat(`"`, 128), strings.Repeat(`\`, 128),
		strings.Repeat("\u2028", 42), strings.Repeat("日", 42), strings.Repeat("&", 125) + "日"} {
		worst := Ticket{User: user, Device: strings.Repeat("d", 64), Node: "ws-1" + strings.Repeat("n", 59), Epoch: 1<<64 - 1}
		v.node = worst.Node
		token := s.Ticket(worst, start)
		worst.Issued = start
		if got, err := v.Ticket(token, start); err != nil || !reflect.DeepEqual(got, worst) {
			t.Errorf("user %.12q…, longest ids: a ticket of %d bytes (the contract allows %d): %v", user, len(token), MaxBytes, err)
		}
	}
}

func TestPeer(t *testing.T) {
	s, v, _ := setup(t)
	token := s.Peer("locator:1", "ws-1", start)
	if from, err := v.Peer(token, start); err != nil || from != "locator:1" {
		t.Errorf("from %q, %v", from, err)
	}
	if _, err := v.Peer(token, start); !errors.Is(err, ErrUsed) {
		t.Errorf("a second use: %v", err)
	}
}

// Whoever has a key of a node cannot act as a locator, nor as another node: it moves
// sessions, and calls in its own name.
func TestOwners(t *testing.T) {
	s, v, b := setup(t)
	moved := alice
	moved.Session, moved.Connected = "s1", start
	for _, c := range []struct {
		what, owner string
		use         func() error
		ok          bool
	}{
		{"a locator's ticket", "locator:1", func() error { _, err := v.Ticket(s.Ticket(alice, start), start); return err }, true},
		{"a node's ticket for nobody's session", "node:ws-2", func() error { _, err := v.Ticket(s.Ticket(alice, start), start); return err }, false},
		{"a node moves a session", "node:ws-2", func() error {
			got, err := v.Ticket(s.Ticket(moved, start), start)
			if got.From != "ws-2" {
				t.Errorf("it is from %q", got.From)
			}
			return err
		}, true},
		{"a node calls", "node:ws-2", func() error { _, err := v.Peer(s.Peer("node:ws-2", "ws-1", start), start); return err }, true},
		{"a node calls as another", "node:ws-2", func() error { _, err := v.Peer(s.Peer("node:ws-3", "ws-1", start), start); return err }, false},
		{"a node calls as a locator", "node:ws-2", func() error { _, err := v.Peer(s.Peer("locator:1", "ws-1", start), start); return err }, false},
		{"a locator calls as another", "locator:2", func() error { _, err := v.Peer(s.Peer("locator:1", "ws-1", start), start); return err }, false},
		{"a locator relays", "locator:1", func() error { _, err := v.Edge(s.Edge("locator:1", "ws-1", start), start); return err }, true},
		{"a node relays", "node:ws-2", func() error { _, err := v.Edge(s.Edge("node:ws-2", "ws-1", start), start); return err }, false},
		{"a node relays as a locator", "node:ws-2", func() error { _, err := v.Edge(s.Edge("locator:1", "ws-1", start), start); return err }, false},
		{"a key of nobody", "", func() error { _, err := v.Peer(s.Peer("locator:1", "ws-1", start), start); return err }, false},
	} {
		b.owner = c.owner
		if err := c.use(); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

// Another key never has the id of a key.
func TestKID(t *testing.T) {
	s := NewSigner()
	if KID(s.Public) != s.KID || len(s.KID) != 16 || KID(NewSigner().Public) == s.KID {
		t.Errorf("%q", s.KID)
	}
}

// Of many uses at the same instant exactly one wins.
func TestOnceConcurrently(t *testing.T) {
	s := NewSigner()
	v := NewVerifier("ws-1", frozen{s}, 1000)
	for range 50 {
		token := s.Ticket(alice, start)
		errs := make([]error, 16)
		begin := make(chan struct{})
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() {
				<-begin
				_, errs[i] = v.Ticket(token, start)
			})
		}
		close(begin)
		wg.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
			} else if !errors.Is(err, ErrUsed) {
				t.Fatal(err)
			}
		}
		if won != 1 {
			t.Fatalf("%d of 16 uses won", won)
		}
	}
}

// frozen is a Keys without a memory of who asked.
type frozen struct{ s *Signer }

func (f frozen) Key(string) (ed25519.PublicKey, string) { return f.s.Public, "locator:1" }
func (frozen) Skew(string) time.Duration                { return 0 }

// Expiry is judged by the clock of the signer.
func TestExpiry(t *testing.T) {
	for _, c := range []struct {
		name  string
		skew  time.Duration // the signer's clock is ahead by this much
		after time.Duration // the ticket is used
		want  error
	}{
		{"at once", 0, 0, nil},
		{"in time", 0, Life - time.Second, nil},
		{"at the end", 0, Life, ErrExpired},
		{"later", 0, time.Hour, ErrExpired},
		{"clock ahead, at once", time.Hour, 0, nil},
		{"clock ahead, in time", time.Hour, Life - time.Second, nil},
		{"clock ahead, at the end", time.Hour, Life, ErrExpired},
		{"clock behind, at once", -time.Hour, 0, nil},
		{"clock behind, in time", -time.Hour, Life - time.Second, nil},
		{"clock behind, at the end", -time.Hour, Life, ErrExpired},
		{"skew known to a few seconds", 0, -leeway + time.Second, nil},
		{"from the future", 0, -leeway - 2*time.Second, ErrInvalid},
	} {
		s, v, b := setup(t)
		b.skew[s.KID] = c.skew
		token := s.Ticket(alice, start.Add(c.skew))
		if _, err := v.Ticket(token, start.Add(c.after)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// raw makes a token of any header and claims, signed by sign.
func raw(t *testing.T, header, claims map[string]any, sign func(input string) []byte) string {
	t.Helper()
	enc := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	input := enc(header) + "." + enc(claims)
	return input + "." + base64.RawURLEncoding.EncodeToString(sign(input))
}

// with is m with one more entry, or with one less when v is nil.
func with(m map[string]any, k string, v any) map[string]any {
	out := map[string]any{}
	for k, v := range m {
		out[k] = v
	}
	if out[k] = v; v == nil {
		delete(out, k)
	}
	return out
}

func TestForged(t *testing.T) {
	s, v, b := setup(t)
	stranger := NewSigner()
	header := map[string]any{"alg": "EdDSA", "typ": kindTicket, "kid": s.KID}
	claims := map[string]any{"sub": "alice", "dev": "web-1", "aud": "ws-1", "jti": "1", "exp": start.Add(Life).Unix(), "ep": 42}
	ours := func(input string) []byte { return ed25519.Sign(s.key, []byte(input)) }
	want := alice
	want.Issued = start
	if got, err := v.Ticket(raw(t, header, claims, ours), start); err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("the ticket that all below change is refused: %+v %v", got, err)
	}
	theirs := func(input string) []byte { return ed25519.Sign(stranger.key, []byte(input)) }
	hmac := func(key []byte) func(string) []byte {
		return func(input string) []byte {
			sig, err := jwt.SigningMethodHS256.Sign(input, key)
			if err != nil {
				t.Fatal(err)
			}
			return sig
		}
	}
	der, err := x509.MarshalPKIXPublicKey(s.Public)
	if err != nil {
		t.Fatal(err)
	}
	pemKey := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	none := func(string) []byte { return nil }
	jwk := map[string]any{"kty": "OKP", "crv": "Ed25519", "x": base64.RawURLEncoding.EncodeToString(stranger.Public)}
	exp := start.Add(Life).Unix()
	for name, c := range map[string]struct {
		header, claims map[string]any
		sign           func(string) []byte
		want           error
	}{
		"signed by a stranger":           {header, claims, theirs, ErrInvalid},
		"not signed":                     {header, claims, none, ErrInvalid},
		"alg none":                       {with(header, "alg", "none"), claims, none, ErrInvalid},
		"alg None":                       {with(header, "alg", "None"), claims, none, ErrInvalid},
		"alg missing":                    {with(header, "alg", nil), claims, ours, ErrInvalid},
		"alg a number":                   {with(header, "alg", 5), claims, ours, ErrInvalid},
		"HS256 with the public key":      {with(header, "alg", "HS256"), claims, hmac(s.Public), ErrInvalid},
		"HS256 with the PEM public key":  {with(header, "alg", "HS256"), claims, hmac(pemKey), ErrInvalid},
		"unknown kid":                    {with(header, "kid", stranger.KID), claims, theirs, ErrUnknownKey},
		"kid of a path":                  {with(header, "kid", "../../../dev/null"), claims, theirs, ErrUnknownKey},
		"kid of our key and more":        {with(header, "kid", s.KID+"\x00"), claims, ours, ErrUnknownKey},
		"kid missing":                    {with(header, "kid", nil), claims, ours, ErrUnknownKey},
		"kid a list":                     {with(header, "kid", []string{s.KID}), claims, ours, ErrUnknownKey},
		"with a key of its own":          {with(with(header, "jwk", jwk), "kid", stranger.KID), claims, theirs, ErrUnknownKey},
		"our kid, a key of its own":      {with(header, "jwk", jwk), claims, theirs, ErrInvalid},
		"with an address of keys":        {with(with(header, "jku", "http://127.0.0.1:1/"), "kid", stranger.KID), claims, theirs, ErrUnknownKey},
		"with certificates":              {with(header, "x5c", []string{"AAAA"}), claims, theirs, ErrInvalid},
		"typ missing":                    {with(header, "typ", nil), claims, ours, ErrInvalid},
		"typ JWT":                        {with(header, "typ", "JWT"), claims, ours, ErrInvalid},
		"typ a map":                      {with(header, "typ", map[string]any{"a": 1}), claims, ours, ErrInvalid},
		"a peer token":                   {with(header, "typ", kindPeer), claims, ours, ErrInvalid},
		"another node":                   {header, with(claims, "aud", "ws-2"), ours, ErrAudience},
		"two nodes":                      {header, with(claims, "aud", []string{"ws-1", "ws-2"}), ours, ErrAudience},
		"no node":                        {header, with(claims, "aud", nil), ours, ErrAudience},
		"node a number":                  {header, with(claims, "aud", 5), ours, ErrInvalid},
		"no user":                        {header, with(claims, "sub", nil), ours, ErrInvalid},
		"user a number":                  {header, with(claims, "sub", 5), ours, ErrInvalid},
		"no id":                          {header, with(claims, "jti", nil), ours, ErrInvalid},
		"empty id":                       {header, with(claims, "jti", ""), ours, ErrInvalid},
		"no exp":                         {header, with(claims, "exp", nil), ours, ErrInvalid},
		"exp null":                       {header, with(claims, "exp", json.RawMessage("null")), ours, ErrInvalid},
		"exp text":                       {header, with(claims, "exp", "tomorrow"), ours, ErrInvalid},
		"exp a list":                     {header, with(claims, "exp", []int64{exp}), ours, ErrInvalid},
		"exp far in the future":          {header, with(claims, "exp", start.AddDate(10, 0, 0).Unix()), ours, ErrInvalid},
		"exp a minute too late":          {header, with(claims, "exp", exp+60), ours, ErrInvalid},
		"exp beyond all time":            {header, with(claims, "exp", json.RawMessage("1e300")), ours, nil},
		"exp beyond 64 bits":             {header, with(claims, "exp", json.RawMessage("9223372036854775807")), ours, nil},
		"exp long ago":                   {header, with(claims, "exp", -1), ours, ErrExpired},
		"exp before all time":            {header, with(claims, "exp", json.RawMessage("-1e300")), ours, nil},
		"the ticket's payload a list":    {header, nil, ours, ErrInvalid},
		"signature of another algorithm": {with(header, "alg", "RS256"), claims, ours, ErrInvalid},
	} {
		if c.claims != nil && c.claims["jti"] == "1" {
			c.claims = with(c.claims, "jti", name) // none is refused as used before
		}
		_, err := v.Ticket(raw(t, c.header, c.claims, c.sign), start)
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	b.asked = nil
	for _, token := range []string{"", ".", "..", "a.b.c", "....", strings.Repeat("a", MaxBytes+1), strings.Repeat(".", 1<<20)} {
		if _, err := v.Ticket(token, start); !errors.Is(err, ErrInvalid) {
			t.Errorf("%.20q: %v", token, err)
		}
		if _, err := v.Peer(token, start); !errors.Is(err, ErrInvalid) {
			t.Errorf("peer token %.20q: %v", token, err)
		}
	}
	if len(b.asked) > 0 {
		t.Errorf("keys were looked up for tokens that are none: %q", b.asked)
	}
	big := s.Ticket(Ticket{User: strings.Repeat("u", 2000), Device: "d", Node: "ws-1"}, start)
	if _, err := v.Ticket(big, start); !errors.Is(err, ErrInvalid) {
		t.Errorf("a ticket of %d bytes: %v", len(big), err)
	}
}

// RFC 7519: exp is a JSON number. The same number as text is none.
func TestTextExp(t *testing.T) {
	s, v, _ := setup(t)
	exp := strconv.FormatInt(start.Add(Life).Unix(), 10)
	claims := map[string]any{"sub": "alice", "dev": "web-1", "aud": "ws-1", "jti": "1", "exp": exp}
	token := raw(t, map[string]any{"alg": "EdDSA", "typ": kindTicket, "kid": s.KID}, claims, func(input string) []byte { return ed25519.Sign(s.key, []byte(input)) })
	if _, err := v.Ticket(token, start); !errors.Is(err, ErrInvalid) {
		t.Errorf("exp as text: %v", err)
	}
}

// One kind never passes for the other, though one key signs both.
func TestKinds(t *testing.T) {
	s, v, _ := setup(t)
	peer := s.Peer("locator:1", "ws-1", start)
	if _, err := v.Ticket(peer, start); !errors.Is(err, ErrInvalid) {
		t.Errorf("a peer token as a ticket: %v", err)
	}
	if _, err := v.Peer(s.Ticket(alice, start), start); !errors.Is(err, ErrInvalid) {
		t.Errorf("a ticket as a peer token: %v", err)
	}
	if _, err := v.Peer(peer, start); err != nil {
		t.Errorf("the refused try used the token up: %v", err)
	}
	other := s.Peer("locator:1", "ws-2", start)
	if _, err := v.Peer(other, start); !errors.Is(err, ErrAudience) {
		t.Errorf("a peer token for another node: %v", err)
	}
}

// No error shows the token.
func TestErrorsHideToken(t *testing.T) {
	s, v, _ := setup(t)
	token := s.Ticket(alice, start)
	parts := strings.Split(token, ".")
	for _, x := range []string{token + "x", "x" + token, parts[0] + "." + parts[1] + ".!!!", parts[0] + ".!!!." + parts[2], token + "." + parts[2]} {
		_, err := v.Ticket(x, start)
		if err == nil {
			t.Fatal("accepted")
		}
		for _, p := range parts {
			if strings.Contains(err.Error(), p) {
				t.Errorf("the error shows the token: %v", err)
			}
		}
	}
}

// A token that is written differently is the same token, or none.
func TestOnceHoweverWritten(t *testing.T) {
	s, v, _ := setup(t)
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	for range 20 {
		token := s.Ticket(alice, start)
		if _, err := v.Ticket(token, start); err != nil {
			t.Fatal(err)
		}
		again := []string{token + "=", token + "==", token + "\n", " " + token, token + "."}
		for _, d := range digits { // the last digit has bits that say nothing
			again = append(again, token[:len(token)-1]+string(d))
		}
		for _, x := range again {
			if _, err := v.Ticket(x, start); err == nil {
				t.Fatalf("%q passed, though %q was used", x, token)
			}
		}
	}
}

// The memory for used tokens is bounded; a token that finds it full is not
// used up, and time makes room.
func TestFull(t *testing.T) {
	s, _, b := setup(t)
	v := NewVerifier("ws-1", b, 10)
	for range 10 {
		if _, err := v.Ticket(s.Ticket(alice, start), start); err != nil {
			t.Fatal(err)
		}
	}
	token := s.Ticket(alice, start)
	for range 3 {
		if _, err := v.Ticket(token, start); !errors.Is(err, ErrFull) {
			t.Fatalf("the eleventh: %v", err)
		}
	}
	if _, err := v.Ticket(s.Ticket(alice, start), start.Add(Life/2)); !errors.Is(err, ErrFull) {
		t.Errorf("later, while the ten are still good: %v", err)
	}
	later := start.Add(2 * span)
	if _, err := v.Ticket(s.Ticket(alice, later), later); err != nil {
		t.Errorf("when the ten have expired: %v", err)
	}
}

// A generation is forgotten when nothing in it can be good any more, never earlier.
func TestGenerations(t *testing.T) {
	u := newUsed(1 << 20)
	first, last := usedID{1}, usedID{2}
	if err := u.use(first, start); err != nil {
		t.Fatal(err)
	}
	for i := time.Duration(1); i <= Life+leeway; i += 250 * time.Millisecond { // as long as any token may live
		if err := u.use(first, start.Add(i)); !errors.Is(err, ErrUsed) {
			t.Fatalf("%s after its use it is free again (%v)", i, err)
		}
		_ = u.use(usedID{3, byte(i / time.Second), byte(i / time.Millisecond / 10)}, start.Add(i))
	}
	// The same for one that was used just before a generation ends.
	edge := start.Add(span - time.Millisecond)
	if err := u.use(last, edge); err != nil {
		t.Fatal(err)
	}
	for i := time.Duration(0); i <= Life+leeway; i += 250 * time.Millisecond {
		if err := u.use(last, edge.Add(i)); !errors.Is(err, ErrUsed) {
			t.Fatalf("%s after its use it is free again (%v)", i, err)
		}
	}
	end := edge.Add(3 * span)
	if err := u.use(last, end); err != nil {
		t.Errorf("long after it is still remembered: %v", err)
	}
	if n := len(u.young) + len(u.old); n != 1 {
		t.Errorf("%d ids are remembered, want 1", n)
	}
}

func TestSigners(t *testing.T) {
	a, b := NewSigner(), NewSigner()
	if a.KID == b.KID || a.Public.Equal(b.Public) || len(a.KID) != 16 {
		t.Errorf("key ids %q, %q", a.KID, b.KID)
	}
}
