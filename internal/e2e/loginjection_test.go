package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/golang-jwt/jwt/v5"
	"github.com/nats-io/nats.go"

	"github.com/dialring/dialring/internal/ticket"
	"github.com/dialring/dialring/internal/wire"
)

// Strangers, users, services, applications and whoever writes to NATS send what would be lines
// of the log, or turn them around: each line stays one JSON object, with nothing in it that a
// terminal obeys.
func TestLogInjection(t *testing.T) {
	t.Parallel()
	const (
		evil = "forged\n{\"level\":\"ERROR\",\"event\":\"forged\"}\r\x1b[2J\x9b\u0085\u202e\u2028\x7fend"
		// What an id, or a header, may have in it.
		turned = "forged\u202e\u2066{\"event\":\"forged\"}\u2028\u200bend"
	)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("X-Evil", turned)
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, evil)
	}))
	defer app.Close()
	settings := []string{"DIALRING_LOG_LEVEL=debug", "DIALRING_RATE_PER_ADDRESS=-1"}
	c := startNormalWith(t, settings, 1, append(settings, "DIALRING_APP="+app.URL, "DIALRING_APP_SECRET=0123456789abcdef0123456789abcdef", "DIALRING_APP_TIMEOUT=100ms")...)
	l, n := c.l, c.nodes[0]
	at := "http://" + l.addr

	// Tokens, and what comes with them. Refusals are logged a few of each reason.
	for what, header := range map[string]map[string]any{"sub": nil, "kid": {"kid": evil}, "typ": {"typ": evil}} {
		claims := inprocClaims(nil)
		if what == "sub" {
			claims["sub"] = evil
		}
		secret := inprocSecret
		if what == "kid" {
			secret = strings.ToUpper(secret)
		}
		a := inprocDo(t, "POST", at+"/v1/locate?device="+url.QueryEscape(evil), nil, "Authorization", "Bearer "+inprocToken(t, jwt.SigningMethodHS256, []byte(secret), header, claims))
		if what != "typ" && a.status != 401 || a.status == 200 {
			t.Errorf("a token with such a %s: %d %s", what, a.status, a.body)
		}
	}
	raw := func(s string) string { return inprocB64([]byte(s)) }
	alg, _ := json.Marshal(map[string]any{"alg": evil})
	for _, token := range []string{raw(string(alg)) + "." + raw(`{"sub":"a"}`) + ".x", raw(evil) + "." + raw(evil) + "." + raw(evil), turned} {
		inprocProblem(t, inprocDo(t, "POST", at+"/v1/locate", nil, "Authorization", "Bearer "+token), 401, wire.CodeUnauthorized)
	}
	// Tickets, signed by a key that the node believes.
	for _, tk := range []ticket.Ticket{{User: evil, Device: "d", Node: n.id}, {User: "a", Device: evil, Node: n.id}, {User: turned, Device: "d", Node: evil}, {User: turned, Device: "d", Node: n.id, Session: evil}} {
		d := newInprocDial(c.signer.Ticket(tk, time.Now()))
		d.set("User-Agent", turned)
		a, conn := inprocRaw(t, n.addr, d.String())
		_ = conn.Close()
		if tk.Session == "" && a.status != 401 {
			t.Errorf("%+v: %d", tk, a.status)
		}
	}
	// Headers and paths. Control characters end in net/http; the rest comes as far as it may.
	for _, name := range []string{"Origin", "User-Agent", "X-Forwarded-For", "Forwarded", "Referer", "Traceparent", "Tracestate", "Idempotency-Key", "Content-Type", "Authorization", "Dialring-Client", "X-Request-Id"} {
		for _, value := range []string{turned, "a\x1b[2J", "a\x00b"} {
			for _, addr := range []string{l.addr, n.addr, n.peer, n.admin, l.admin} {
				d := newInprocDial("x")
				d.target = "/v1/ws?since=%0Aforged&x=" + url.QueryEscape(evil)
				d.set(name, value)
				a, conn := inprocRaw(t, addr, d.String())
				_ = conn.Close()
				if a.status < 400 {
					t.Errorf("%s at %s: %d", name, addr, a.status)
				}
			}
		}
	}
	for _, path := range []string{"/v1/push/" + url.PathEscape(evil), "/" + url.PathEscape(evil), "/v1/users/" + url.PathEscape(evil), "/v1/groups/" + url.PathEscape(evil), "/v1/nodes/" + url.PathEscape(evil) + "/drain",
		"/n/" + url.PathEscape(evil) + "/v1/ws", "/v1/push/a?device=" + url.QueryEscape(evil), "/v1/push/a?" + url.QueryEscape(evil) + "=1"} {
		if status, b := call(t, "POST", at+path, "1"); status < 400 {
			t.Errorf("%q: %d %s", path, status, b)
		}
		inprocDo(t, "POST", "http://"+n.addr+path, nil)
		inprocDo(t, "POST", "http://"+n.peer+path, nil)
	}
	// A user who may be called so.
	loc := l.locate(t, turned, `{"device":"d"}`)
	b := dialLocated(t, loc)
	if r := l.push(t, url.PathEscape(turned), `"`+"\u202e"+`"`); r.Delivered != 1 {
		t.Errorf("%+v", r)
	}
	b.text(t)
	write := func(b *bare, frame map[string]any) {
		t.Helper()
		p, err := json.Marshal(frame)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Write(inprocFrame(0x81, p)); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []map[string]any{{"type": "send", "ref": 1, "data": turned}, {"type": "send", "ref": 2, "to": turned, "data": 1}, {"type": "send", "ref": 3, "to": evil, "data": 1}} {
		write(b, f)
		b.expectType(t, wire.TypeError, &wire.ErrorFrame{}) // what the application answers is none, and nobody may send to others
	}
	if status, body := call(t, "DELETE", at+"/v1/users/"+url.PathEscape(turned)+"/sessions", ""); status != 200 || !strings.Contains(string(body), `"closed":1`) {
		t.Errorf("a kick: %d %s", status, body)
	}
	if code := b.closeCode(t); code != wire.CloseKicked {
		t.Errorf("it was closed with %d", code)
	}
	for _, f := range []map[string]any{{"type": evil}, {"type": "ping", "ref": evil + evil}, {"type": "ack", "cursor": evil}, {"type": "resume", "since": evil}} {
		b := dialLocated(t, l.locate(t, turned, `{"device":"d"}`))
		write(b, f)
		if _, err := b.Write(inprocFrame(0x88, append([]byte{0x0f, 0xA0}, turned...))); err != nil {
			t.Fatal(err)
		}
		b.closeCode(t) // theirs, or ours
	}
	// Whoever writes to NATS.
	nc, err := nats.Connect(l.nats, nats.Token(normalNATSToken))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	for _, kind := range []string{"node", "locator"} {
		for i, beat := range []map[string]any{{"id": evil}, {"id": "x", "url": "ws://" + turned, "boot": turned, "weight": 1}, {"id": "x", "boot": "b", "weight": 1, "url": evil, "peer_url": evil}} {
			p, err := json.Marshal(beat)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range [][]byte{p, []byte(evil)} {
				if err := nc.Publish(fmt.Sprintf("dialring.beat.%s.forged-\u202e-%d", kind, i), m); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if err := nc.Publish("dialring.ring", []byte(evil)); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	l.event(t, "beat_refused")

	for _, p := range []*process{n.process, l.process} {
		if code := p.term(t); code != 0 {
			t.Errorf("%s ended with %d", p.name, code)
		}
		text := p.text()
		for _, proof := range []string{"forged", `\\u202e`, "token_refused", "ticket_refused"} { // what was sent is in it, escaped
			if p == l.process && proof == "ticket_refused" || p == n.process && proof == "token_refused" {
				continue
			}
			if !strings.Contains(text, proof) {
				t.Errorf("the log of %s has no %s: the test shows nothing", p.name, proof)
			}
		}
		for line := range strings.Lines(text) {
			line = strings.TrimSuffix(line, "\n")
			var m struct{ Time, Level, Msg, Event string }
			if err := json.Unmarshal([]byte(line), &m); err != nil || m.Time == "" || m.Level == "" || m.Event == "" {
				t.Errorf("%s: not a line of a log: %v in %q", p.name, err, line)
			}
			if m.Event == "forged" {
				t.Errorf("%s: a forged line: %q", p.name, line)
			}
			if !utf8.ValidString(line) || strings.ContainsFunc(line, func(r rune) bool { return unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) }) {
				t.Errorf("%s: a line that a terminal obeys: %q", p.name, line)
			}
		}
	}
}
