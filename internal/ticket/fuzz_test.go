package ticket

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// onlyKey is the one key of a cluster, whose owner's clock is ahead.
type onlyKey struct {
	s    *Signer
	skew time.Duration
}

func (k onlyKey) Key(kid string) (ed25519.PublicKey, string) {
	if kid == k.s.KID {
		return k.s.Public, FromLocator + "1"
	}
	return nil, ""
}

func (k onlyKey) Skew(string) time.Duration { return k.skew }

// FuzzTicket has any claims, which come back as they were signed, and once; and any
// bytes in place of some of a good ticket's, which are refused.
func FuzzTicket(f *testing.F) {
	f.Add("alice", "web-1", "ws-1", uint64(1), "", int64(0), "bob,team-*", int64(0), 10, "x")
	f.Add("a\"\\\n\u2028<é", "d", "ws-1", uint64(1<<63), "session", int64(1700000000123), "", int64(5), 40, ".")
	f.Add("bob", "", "ws-2", uint64(0), "s", int64(-1), "a,,b", int64(-3600), 0, "")
	f.Add("\x00", "d", "", uint64(7), "", int64(7), "*", int64(31), 70, "eyJhbGciOiJub25lIn0")
	f.Add(strings.Repeat("u", 128), strings.Repeat("d", 64), strings.Repeat("n", 63), uint64(1), strings.Repeat("s", 30), int64(1), "", int64(29), 300, "==")
	signer, stranger := NewSigner(), NewSigner()
	f.Fuzz(func(t *testing.T, user, device, node string, epoch uint64, session string, connected int64, sendTo string, age int64, at int, put string) {
		for _, s := range []string{user, device, node, session, sendTo} {
			if !utf8.ValidString(s) {
				return // what is signed was checked
			}
		}
		if age < -1<<20 || age > 1<<20 || connected < 0 || connected > 1<<50 {
			return
		}
		now := time.Unix(1_800_000_000, 0)
		skew := time.Duration(epoch%600) * time.Second
		v := NewVerifier("ws-1", onlyKey{signer, skew}, 10)
		in := Ticket{User: user, Device: device, Node: node, Epoch: epoch, Session: session}
		if session != "" {
			in.Connected = time.UnixMilli(connected)
		}
		if sendTo != "" {
			in.SendTo = strings.Split(sendTo, ",")
		}
		// Signed age seconds ago, by its signer's clock.
		signed := now.Add(skew - time.Duration(age)*time.Second)
		token := signer.Ticket(in, signed)
		out, err := v.Ticket(token, now)
		var want error
		switch {
		case len(token) > MaxBytes || user == "":
			want = ErrInvalid
		case age >= int64(Life/time.Second):
			want = ErrExpired
		case time.Duration(-age)*time.Second > leeway:
			want = ErrInvalid
		case node != "ws-1":
			want = ErrAudience
		}
		if !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Fatalf("%+v, %d s old: %v, want %v", in, age, err, want)
		}
		if err == nil {
			out.Issued = time.Time{}
			if out.User != in.User || out.Device != in.Device || out.Node != in.Node || out.Epoch != in.Epoch || out.Session != in.Session ||
				!out.Connected.Equal(in.Connected) || !slices.Equal(out.SendTo, in.SendTo) {
				t.Fatalf("signed %+v, read %+v", in, out)
			}
			if _, err := v.Ticket(token, now); !errors.Is(err, ErrUsed) {
				t.Fatalf("a second time: %v", err)
			}
		}
		// It passes for no other kind, and under no other key.
		fresh := NewVerifier("ws-1", onlyKey{signer, skew}, 10)
		if _, err := fresh.Peer(token, now); err == nil {
			t.Fatal("a ticket passes for a peer token")
		}
		if _, err := fresh.Edge(token, now); err == nil {
			t.Fatal("a ticket passes for a token of a relay")
		}
		if _, err := fresh.Ticket(stranger.Ticket(in, signed), now); err == nil {
			t.Fatal("a stranger's ticket passes")
		}
		// Changed anywhere, it is refused, unless it is the same again.
		if at < 0 || at > len(token) {
			return
		}
		changed := token[:at] + put + token[min(at+len(put), len(token)):]
		if changed == token {
			return
		}
		if out, err := fresh.Ticket(changed, now); err == nil {
			t.Fatalf("changed at %d, it is read as %+v: %s", at, out, changed)
		}
	})
}

// FuzzToken has any text as a token, and any header and claims under a signature that
// is good: it is refused, or has what a ticket must have.
func FuzzToken(f *testing.F) {
	s := NewSigner()
	now := time.Unix(1_800_000_000, 0)
	good := `{"sub":"a","aud":"ws-1","exp":1800000020,"jti":"1"}`
	for _, h := range []string{`{"alg":"EdDSA","kid":"KID","typ":"dr-ticket"}`, `{"alg":"none","kid":"KID","typ":"dr-ticket"}`, `{"alg":"HS256","kid":"KID","typ":"dr-ticket"}`,
		`{"alg":"EdDSA","kid":["KID"],"typ":"dr-ticket"}`, `{"alg":"EdDSA","kid":"KID","typ":"dr-peer"}`, `{"alg":"EdDSA","kid":"KID","typ":"dr-ticket","crit":["x"],"b64":false}`, `[]`, ``,
		`{"alg":"eddsa","kid":"KID","typ":"dr-ticket"}`, `{"alg":"EdDSA","alg":"none","kid":"KID","typ":"dr-ticket"}`} {
		f.Add(h, good, "")
	}
	for _, c := range []string{`{}`, `null`, `{"sub":1}`, `{"sub":"a","aud":["ws-1"],"exp":1800000020.5,"jti":"1"}`, `{"sub":"a","aud":["ws-1","ws-2"],"exp":1800000020,"jti":"1"}`,
		`{"sub":"a","aud":"ws-1","exp":"1800000020","jti":"1"}`, `{"sub":"a","aud":"ws-1","exp":1e308,"jti":"1"}`, `{"sub":"a","aud":"ws-1","exp":-1e308,"jti":"1"}`, `{"sub":"a","aud":"ws-1","exp":9e18,"jti":"1"}`,
		`{"sub":"a","aud":"ws-1","exp":1800000020,"jti":"1","cat":9223372036854775807,"sid":"s"}`, `{"sub":"a","aud":"ws-1","exp":1800000020,"jti":"1","to":"bob"}`, `{"sub":"a","SUB":"b","aud":"ws-1","exp":1800000020,"jti":"1"}`,
		`{"sub":"\ud800","aud":"ws-1","exp":1800000020,"jti":"1"}`, `{"sub":"a","aud":"ws-1","exp":1800000020,"jti":""}`, good + good, good + " "} {
		f.Add(`{"alg":"EdDSA","kid":"KID","typ":"dr-ticket"}`, c, "")
	}
	for _, raw := range []string{"", ".", "..", "a.b.c", "....", strings.Repeat("a.", 500), s.Ticket(Ticket{User: "a", Node: "ws-1"}, now) + "."} {
		f.Add("", "", raw)
	}
	f.Fuzz(func(t *testing.T, header, claims, raw string) {
		if raw == "" {
			header = strings.ReplaceAll(header, "KID", s.KID)
			b := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims))
			raw = b + "." + base64.RawURLEncoding.EncodeToString(s.signature([]byte(b)))
		}
		v := NewVerifier("ws-1", onlyKey{s, 0}, 10)
		got, err := v.Ticket(raw, now)
		if err != nil {
			known := false
			for _, e := range []error{ErrInvalid, ErrExpired, ErrUnknownKey, ErrAudience} {
				known = known || errors.Is(err, e)
			}
			if !known {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		var h struct{ Alg, Kid, Typ string }
		if json.Unmarshal([]byte(header), &h) != nil || h.Alg != "EdDSA" || h.Kid != s.KID || h.Typ != "dr-ticket" {
			t.Fatalf("accepted with the header %s", header)
		}
		var c struct{ Exp float64 }
		if json.Unmarshal([]byte(claims), &c) != nil || c.Exp <= float64(now.Unix()) || c.Exp > float64(now.Add(Life+leeway).Unix())+1 || got.User == "" || got.Node != "ws-1" {
			t.Fatalf("accepted with the claims %s", claims)
		}
		if _, err := v.Ticket(raw, now); !errors.Is(err, ErrUsed) {
			t.Fatalf("a second time: %v", err)
		}
	})
}
