package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/dialring/dialring/internal/ticket"
	"github.com/dialring/dialring/internal/wire"
	"github.com/dialring/dialring/locator"
	"github.com/dialring/dialring/wsnode"
)

// inprocHandshake is a dial with a good ticket, edited, and what it is answered.
type inprocHandshake struct {
	name   string
	edit   func(d *inprocDial, ticket string)
	status int
	code   wire.Code
}

func inprocSet(name string, values ...string) func(*inprocDial, string) {
	return func(d *inprocDial, _ string) { d.set(name, values...) }
}

func inprocTarget(target string) func(*inprocDial, string) {
	return func(d *inprocDial, _ string) { d.target = target }
}

func (c *inprocCluster) handshakes(table []inprocHandshake) {
	for i, h := range table {
		c.t.Run(h.name, func(t *testing.T) {
			c := c.with(t)
			l := c.locate(fmt.Sprintf("user-%d", i), "web")
			d := newInprocDial(l.Ticket)
			h.edit(d, l.Ticket)
			a, conn := inprocRaw(t, c.node(l.Node).at.Listen, d.String())
			if bytes.Contains(conn.raw.Bytes(), []byte(l.Ticket)) {
				t.Errorf("the answer has the ticket: %s", conn.raw.Bytes())
			}
			if h.status == 101 {
				inprocOpened(t, a, conn).alive()
				return
			}
			inprocProblem(t, a, h.status, h.code)
			switch h.status {
			case 405:
				if a.header.Get("Allow") == "" {
					t.Error("405 without Allow")
				}
			case 426:
				if v := a.header.Get("Sec-WebSocket-Version"); v != "13" {
					t.Errorf("426 with Sec-WebSocket-Version %q", v)
				}
			}
		})
	}
}

func TestInprocHandshake(t *testing.T) {
	c := inprocStart(t, locator.Config{}, wsnode.Config{})
	bad := wire.CodeInvalidRequest
	c.handshakes([]inprocHandshake{
		{"good", func(*inprocDial, string) {}, 101, ""},
		{"names in any case", func(d *inprocDial, _ string) {
			d.set("Connection", "keep-alive, uPGRADE")
			d.set("Upgrade", "WebSocket")
		}, 101, ""},
		{"ticket as bearer", func(d *inprocDial, tk string) {
			d.set("Sec-WebSocket-Protocol", "dialring.v1")
			d.set("Authorization", "Bearer "+tk)
		}, 101, ""},
		{"ticket first, other protocols too", func(d *inprocDial, tk string) {
			d.set("Sec-WebSocket-Protocol", "dialring.ticket."+tk+",graphql-ws", "dialring.v2 , dialring.v1")
		}, 101, ""},
		{"since 0", inprocTarget("/v1/ws?since=0"), 101, ""},
		{"extensions are not taken", inprocSet("Sec-WebSocket-Extensions", "permessage-deflate"), 101, ""},

		{"no WebSocket request", func(d *inprocDial, _ string) {
			d.set("Connection")
			d.set("Upgrade")
		}, 400, bad},
		{"no Connection", inprocSet("Connection", "keep-alive"), 400, bad},
		{"no Upgrade", inprocSet("Upgrade"), 400, bad},
		{"Upgrade to h2c", inprocSet("Upgrade", "h2c"), 400, bad},
		{"HTTP/1.0", func(d *inprocDial, _ string) { d.proto = "HTTP/1.0" }, 400, bad},
		{"no protocol", inprocSet("Sec-WebSocket-Protocol"), 400, bad},
		{"bearer without protocol", func(d *inprocDial, tk string) {
			d.set("Sec-WebSocket-Protocol")
			d.set("Authorization", "Bearer "+tk)
		}, 400, bad},
		{"another protocol", func(d *inprocDial, tk string) {
			d.set("Sec-WebSocket-Protocol", "dialring.v2, dialring.ticket."+tk)
		}, 400, bad},
		{"a protocol that only begins so", func(d *inprocDial, tk string) {
			d.set("Sec-WebSocket-Protocol", "dialring.v10, dialring.ticket."+tk)
		}, 400, bad},
		{"no key", inprocSet("Sec-WebSocket-Key"), 400, bad},
		{"empty key", inprocSet("Sec-WebSocket-Key", ""), 400, bad},
		{"key that is no base64", inprocSet("Sec-WebSocket-Key", "!!!!!!!!!!!!!!!!!!!!!!=="), 400, bad},
		{"key of 15 bytes", inprocSet("Sec-WebSocket-Key", base64.StdEncoding.EncodeToString(make([]byte, 15))), 400, bad},
		{"key of 17 bytes", inprocSet("Sec-WebSocket-Key", base64.StdEncoding.EncodeToString(make([]byte, 17))), 400, bad},
		{"two keys", inprocSet("Sec-WebSocket-Key", inprocKey, inprocKey), 400, bad},
		{"body", func(d *inprocDial, _ string) {
			d.set("Content-Length", "5")
			d.body = "hello"
		}, 400, bad},
		{"body in chunks", func(d *inprocDial, _ string) {
			d.set("Transfer-Encoding", "chunked")
			d.body = "5\r\nhello\r\n0\r\n\r\n"
		}, 400, bad},
		{"since too long", inprocTarget("/v1/ws?since=" + strings.Repeat("a", 65)), 400, bad},
		{"since with a space", inprocTarget("/v1/ws?since=a%20b"), 400, bad},
		{"since with a control character", inprocTarget("/v1/ws?since=a%00"), 400, bad},
		{"query that cannot be read", inprocTarget("/v1/ws?since=%zz"), 400, bad},
		{"two tickets", func(d *inprocDial, tk string) {
			d.set("Sec-WebSocket-Protocol", "dialring.v1, dialring.ticket."+tk+", dialring.ticket."+tk)
		}, 400, bad},
		{"ticket twice, also as bearer", inprocSetBearer, 400, bad},

		{"POST", inprocMethod("POST"), 405, wire.CodeMethodNotAllowed},
		{"PUT", inprocMethod("PUT"), 405, wire.CodeMethodNotAllowed},
		{"DELETE", inprocMethod("DELETE"), 405, wire.CodeMethodNotAllowed},
		{"another path", inprocTarget("/v1/wss"), 404, wire.CodeNotFound},
		{"WebSocket version 8", inprocSet("Sec-WebSocket-Version", "8"), 426, bad},
		{"WebSocket version 14", inprocSet("Sec-WebSocket-Version", "14"), 426, bad},
		{"two WebSocket versions", inprocSet("Sec-WebSocket-Version", "13", "8"), 426, bad},

		{"no ticket", inprocSet("Sec-WebSocket-Protocol", "dialring.v1"), 401, wire.CodeUnauthorized},
		{"empty ticket", inprocSet("Sec-WebSocket-Protocol", "dialring.v1, dialring.ticket."), 401, wire.CodeUnauthorized},
		{"ticket in the query", func(d *inprocDial, tk string) {
			d.set("Sec-WebSocket-Protocol", "dialring.v1")
			d.target += "?ticket=" + tk + "&access_token=" + tk
		}, 401, wire.CodeUnauthorized},
		{"ticket as cookie", func(d *inprocDial, tk string) {
			d.set("Sec-WebSocket-Protocol", "dialring.v1")
			d.set("Cookie", "ticket="+tk)
		}, 401, wire.CodeUnauthorized},
	})
	n := c.nodes[0]
	metrics := inprocDo(t, "GET", "http://"+n.at.Admin+"/metrics", nil).body
	for _, tk := range c.issued.all() {
		if bytes.Contains(metrics, []byte(tk)) {
			t.Error("the metrics have a ticket")
		}
	}
}

func inprocSetBearer(d *inprocDial, tk string) { d.set("Authorization", "Bearer "+tk) }

func inprocMethod(m string) func(*inprocDial, string) {
	return func(d *inprocDial, _ string) {
		d.method = m
		d.set("Content-Length", "0")
	}
}

func TestInprocHandshakeOrigins(t *testing.T) {
	const ours = "https://app.example.com"
	c := inprocStart(t, locator.Config{}, wsnode.Config{AllowedOrigins: []string{ours, "https://b.example.com:8443"}})
	var table []inprocHandshake
	for _, o := range []string{ours, "https://b.example.com:8443", "http://localhost:3000", "http://127.0.0.1", "http://[::1]:80"} {
		table = append(table, inprocHandshake{"allowed " + o, inprocSet("Origin", o), 101, ""})
	}
	for _, o := range []string{"null", "", "https://app.example.com.evil.com", "https://evilapp.example.com", "https://x.app.example.com",
		"https://example.com", "https://APP.example.com", "HTTPS://app.example.com", "http://app.example.com", "wss://app.example.com",
		"https://app.example.com:443", "https://app.example.com:8443", "https://b.example.com", "https://app.example.com@evil.com",
		"https://user@app.example.com", "https://app.example.com/", "https://app.example.com.", "https://app.example.com#", "app.example.com",
		"https://app.example.com https://evil.com", "http://localhost.evil.com", "http://127.0.0.1.evil.com", "http://localhost@evil.com",
		"http://evil.com:80@localhost", "http://localhost/", "file://localhost", "*"} {
		table = append(table, inprocHandshake{"refused " + o, inprocSet("Origin", o), 403, wire.CodeForbidden})
	}
	table = append(table,
		inprocHandshake{"two origins", inprocSet("Origin", ours, "https://evil.com"), 403, wire.CodeForbidden},
		inprocHandshake{"one origin twice", inprocSet("Origin", ours, ours), 403, wire.CodeForbidden})
	c.handshakes(table)
}

// inprocToken signs any claims with any header, as a stranger would.
func inprocToken(t *testing.T, method jwt.SigningMethod, key any, header, claims map[string]any) string {
	t.Helper()
	tok := jwt.NewWithClaims(method, jwt.MapClaims(claims))
	for k, v := range header {
		tok.Header[k] = v
	}
	s, err := tok.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestInprocTicketsRefused(t *testing.T) {
	c := inprocStart(t, locator.Config{}, wsnode.Config{}, wsnode.Config{})
	s, stranger := c.signer(), ticket.NewSigner()
	const node = "ws-1"
	user, other := c.userOf(node), c.userOf("ws-2")
	now := time.Now()
	good := ticket.Ticket{User: user, Device: "web", Node: node}
	sign := func(tk ticket.Ticket, at time.Time) string { return s.Ticket(tk, at) }
	dial := func(t *testing.T, tk string) (inprocAnswer, *inprocConn) {
		d := newInprocDial("")
		d.set("Sec-WebSocket-Protocol", "dialring.v1")
		d.set("Authorization", "Bearer "+tk)
		return inprocRaw(t, c.node(node).at.Listen, d.String())
	}

	// The signer that the rest is about is one that the node believes.
	a, conn := dial(t, sign(good, now))
	inprocOpened(t, a, conn).alive()

	claims := func() map[string]any {
		return map[string]any{"sub": user, "aud": []string{node}, "dev": "web", "exp": time.Now().Add(20 * time.Second).Unix(), "jti": rand.Text()}
	}
	without := func(name string, value any) map[string]any {
		m := claims()
		if delete(m, name); value != nil {
			m[name] = value
		}
		return m
	}
	header := map[string]any{"typ": "dr-ticket", "kid": s.KID}
	// golang-jwt needs the private key, which a signer keeps: so what must be
	// refused for its claims is refused here for its signature, too, unless it is
	// made with Signer.
	forged := sign(good, now)
	parts := strings.Split(forged, ".")
	sig, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		t.Fatal(err)
	}
	sig[10] ^= 1
	b, err := json.Marshal(without("sub", other))
	if err != nil {
		t.Fatal(err)
	}
	swapped := parts[0] + "." + base64.RawURLEncoding.EncodeToString(b) + "." + parts[2]
	jwk := map[string]any{"kty": "OKP", "crv": "Ed25519", "x": base64.RawURLEncoding.EncodeToString(stranger.Public)}

	for name, tk := range map[string]string{
		"nonsense":                    "nonsense",
		"two dots":                    "..",
		"too long":                    strings.Repeat("a", 1025),
		"wrong signature":             parts[0] + "." + parts[1] + "." + base64.RawURLEncoding.EncodeToString(sig),
		"no signature":                parts[0] + "." + parts[1] + ".",
		"other claims":                swapped,
		"alg none":                    inprocToken(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, header, claims()),
		"HS256, public key":           inprocToken(t, jwt.SigningMethodHS256, []byte(s.Public), header, claims()),
		"HS256, public key hex":       inprocToken(t, jwt.SigningMethodHS256, []byte(fmt.Sprintf("%x", s.Public)), header, claims()),
		"HS256, empty key":            inprocToken(t, jwt.SigningMethodHS256, []byte{}, header, claims()),
		"a key that is not published": stranger.Ticket(good, now),
		"expired":                     sign(good, now.Add(-ticket.Life-time.Second)),
		"good for too long":           sign(good, now.Add(time.Hour)),
		"for another node":            sign(ticket.Ticket{User: user, Device: "web", Node: "ws-2"}, now),
		"for no node":                 sign(ticket.Ticket{User: user, Device: "web"}, now),
		"for another node's user":     sign(ticket.Ticket{User: other, Device: "web", Node: "ws-2"}, now),
		"without user":                sign(ticket.Ticket{Device: "web", Node: node}, now),
		"without device":              sign(ticket.Ticket{User: user, Node: node}, now),
		"user with a newline":         sign(ticket.Ticket{User: "a\nb", Device: "web", Node: node}, now),
		"device with a space":         sign(ticket.Ticket{User: user, Device: "a b", Node: node}, now),
		"peer token":                  s.Peer("locator", node, now),
	} {
		t.Run(name, func(t *testing.T) {
			a, conn := dial(t, tk)
			inprocProblem(t, a, 401, wire.CodeUnauthorized)
			if len(tk) > 10 && bytes.Contains(conn.raw.Bytes(), []byte(tk)) {
				t.Error("the answer has the ticket")
			}
		})
	}
	_, key, err := inprocEd25519()
	if err != nil {
		t.Fatal(err)
	}
	for name, h := range map[string]map[string]any{
		"another's kid":   {"typ": "dr-ticket", "kid": s.KID},
		"kid of nobody":   {"typ": "dr-ticket", "kid": strings.Repeat("0", 16)},
		"kid with a path": {"typ": "dr-ticket", "kid": "../../" + s.KID},
		"kid with a star": {"typ": "dr-ticket", "kid": "*"},
		"kid of a number": {"typ": "dr-ticket", "kid": 7},
		"no kid":          {"typ": "dr-ticket"},
		"own jwk":         {"typ": "dr-ticket", "kid": s.KID, "jwk": jwk},
		"own jku":         {"typ": "dr-ticket", "kid": s.KID, "jku": "http://" + c.node(node).at.Listen},
	} {
		t.Run(name, func(t *testing.T) {
			a, _ := dial(t, inprocToken(t, jwt.SigningMethodEdDSA, key, h, claims()))
			inprocProblem(t, a, 401, wire.CodeUnauthorized)
		})
	}

	t.Run("not the owner", func(t *testing.T) {
		a, _ := dial(t, sign(ticket.Ticket{User: other, Device: "web", Node: node}, time.Now()))
		inprocProblem(t, a, 421, wire.CodeMisdirected)
	})
	t.Run("used twice", func(t *testing.T) {
		tk := sign(good, time.Now())
		a, conn := dial(t, tk)
		w := inprocOpened(t, a, conn)
		a, _ = dial(t, tk)
		inprocProblem(t, a, 401, wire.CodeUnauthorized)
		w.alive()
	})
	t.Run("used at the same instant", func(t *testing.T) {
		d := newInprocDial(sign(good, time.Now())).String()
		const n = 8
		var conns [n]*inprocConn
		for i := range conns { // all but the end of the request
			conns[i] = inprocConnect(t, c.node(node).at.Listen)
			conns[i].send(d[:len(d)-2])
		}
		start := make(chan struct{})
		got := make(chan int)
		for _, conn := range conns {
			go func() {
				<-start
				_, _ = conn.Write([]byte("\r\n"))
				a, _ := conn.tryAnswer()
				got <- a.status
			}()
		}
		close(start)
		count := map[int]int{}
		for range conns {
			count[<-got]++
		}
		if count[101] != 1 || count[401] != n-1 {
			t.Errorf("the answers were %v; want one 101 and %d times 401", count, n-1)
		}
	})
}
