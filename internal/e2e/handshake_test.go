package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
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
	code   wire.Code // empty: it is net/http that refuses it, before the node sees it
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
			if h.code == "" {
				inprocRefused(t, a, conn, h.status)
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
				if u, c := a.header.Get("Upgrade"), a.header.Get("Connection"); u != "websocket" || !strings.EqualFold(c, "upgrade") {
					t.Errorf("426 with Upgrade %q and Connection %q", u, c)
				}
			}
		})
	}
}

// inprocRefused checks an answer of net/http's own: short, and the end of the connection.
func inprocRefused(t *testing.T, a inprocAnswer, conn *inprocConn, status int) {
	t.Helper()
	if a.status != status || len(a.body) > 200 {
		t.Fatalf("status %d, want %d: %s", a.status, status, a.body)
	}
	if rest, _ := io.ReadAll(conn.br); len(rest) > 0 { // it may be reset: not all that came was read
		t.Errorf("after the answer came %q", rest)
	}
}

// TestHandshake has the handshake of RFC 6455, section 4, to the letter of HTTP, on a
// node outside development mode.
func TestHandshake(t *testing.T) {
	t.Parallel()
	c := processes(t, locator.Config{}, wsnode.Config{})
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
		{"extensions that cannot be read", inprocSet("Sec-WebSocket-Extensions", ";;=,\"", ",,,"), 101, ""},
		{"names of headers in any case", func(d *inprocDial, _ string) {
			for i, h := range d.headers {
				d.headers[i][0] = [2]string{strings.ToUpper(h[0]), strings.ToLower(h[0])}[i%2]
			}
		}, 101, ""},
		{"Connection in two headers", inprocSet("Connection", "keep-alive", "Upgrade"), 101, ""},
		{"Upgrade in two headers", inprocSet("Upgrade", "h2c", "websocket"), 101, ""},
		{"Upgrade as a list", inprocSet("Upgrade", "h2c, WEBSOCKET ,foo/2"), 101, ""},
		{"blanks around values", func(d *inprocDial, _ string) {
			d.set("Sec-WebSocket-Version", " \t13\t ")
			d.set("Sec-WebSocket-Key", "  "+inprocKey+"  ")
		}, 101, ""},
		{"a header in two lines", inprocSet("Upgrade", "\r\n websocket"), 101, ""},
		{"the protocol twice", func(d *inprocDial, tk string) {
			d.set("Sec-WebSocket-Protocol", "dialring.v1, dialring.v1", "dialring.v1, dialring.ticket."+tk)
		}, 101, ""},
		{"absolute target", inprocTarget("http://node.test/v1/ws"), 101, ""},
		{"absolute target of another host", inprocTarget("http://other.test/v1/ws"), 101, ""},
		{"a body of nothing", inprocSet("Content-Length", "0"), 101, ""},
		{"a thousand headers", func(d *inprocDial, _ string) {
			for i := range 1000 {
				d.headers = append(d.headers, [2]string{fmt.Sprint("X-", i), "y"})
			}
		}, 101, ""},
		{"a query that is not of the contract", inprocTarget("/v1/ws?device=%00&x=%ff&since="), 101, ""},

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
		{"WebSocket versions as a list", inprocSet("Sec-WebSocket-Version", "13, 8"), 426, bad},
		{"WebSocket version 13 twice", inprocSet("Sec-WebSocket-Version", "13", "13"), 426, bad},
		{"WebSocket version 12", inprocSet("Sec-WebSocket-Version", "12"), 426, bad},
		{"WebSocket version 013", inprocSet("Sec-WebSocket-Version", "013"), 426, bad},
		{"WebSocket version 13.0", inprocSet("Sec-WebSocket-Version", "13.0"), 426, bad},
		{"no WebSocket version", inprocSet("Sec-WebSocket-Version"), 426, bad},
		{"empty WebSocket version", inprocSet("Sec-WebSocket-Version", ""), 426, bad},
		{"get", inprocMethod("get"), 405, wire.CodeMethodNotAllowed},
		{"a method that is none", inprocMethod("UPGRADE"), 405, wire.CodeMethodNotAllowed},
		{"the path with a slash", inprocTarget("/v1/ws/"), 404, wire.CodeNotFound},
		{"the path with two slashes", inprocTarget("//v1//ws"), 404, wire.CodeNotFound},
		{"the path in capitals", inprocTarget("/V1/WS"), 404, wire.CodeNotFound},
		{"the path encoded", inprocTarget("/v1%2Fws"), 404, wire.CodeNotFound},
		{"the path with dots", inprocTarget("/v1/../v1/ws"), 404, wire.CodeNotFound},
		{"the path of peers", inprocTarget("/v1/peer"), 404, wire.CodeNotFound},

		{"no Host", inprocSet("Host"), 400, ""},
		{"two Hosts", inprocSet("Host", "node.test", "other.test"), 400, ""},
		{"a Host that is none", inprocSet("Host", "a b"), 400, ""},
		{"a blank before the colon", func(d *inprocDial, _ string) {
			d.set("Upgrade")
			d.headers = append(d.headers, [2]string{"Upgrade ", "websocket"})
		}, 400, ""},
		{"a header without a name", func(d *inprocDial, _ string) { d.headers = append(d.headers, [2]string{"", "x"}) }, 400, ""},
		{"a NUL in a header", inprocSet("X-Nul", "a\x00b"), 400, ""},
		{"a lone CR in a header", inprocSet("X-Cr", "a\rb"), 400, ""},
		{"a target that is none", inprocTarget("ws"), 400, ""},
		{"a path that cannot be decoded", inprocTarget("/v1/%zz"), 400, ""},
		{"two lengths", inprocSet("Content-Length", "0", "1"), 400, ""},
		{"a length below 0", inprocSet("Content-Length", "-1"), 400, ""},
		{"HTTP/2.0", func(d *inprocDial, _ string) { d.proto = "HTTP/2.0" }, 505, ""},
		{"HTTP of none", func(d *inprocDial, _ string) { d.proto = "HTTP/one" }, 400, ""},
		{"a transfer encoding that is none", inprocSet("Transfer-Encoding", "gzip"), 501, ""},
		{"a header of 24 KiB", inprocSet("X-Long", strings.Repeat("x", 24<<10)), 431, ""},
		{"headers of 24 KiB", func(d *inprocDial, _ string) {
			for i := range 2000 {
				d.headers = append(d.headers, [2]string{fmt.Sprint("X-", i), "yyyyy"})
			}
		}, 431, ""},

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

// halfCode marks what ends in the middle of a frame.
const halfCode = -1

// A client need not wait for the answer before it sends frames. What it sent is
// handled behind welcome, or, if the dial is refused, by nobody.
func TestEarlyFrames(t *testing.T) {
	t.Parallel()
	c := processes(t, locator.Config{}, wsnode.Config{})
	long := `{"type":"ping","ref":1}` + strings.Repeat(" ", 10_000)
	for name, x := range map[string]conform{
		"a ping":                     {send: inprocText(`{"type":"ping","ref":1}`), want: []string{`{"type":"pong","ref":1}`}},
		"control frames":             {send: joined(inprocFrame(0x89, []byte("p")), inprocFrame(0x8A, nil)), want: []string{"pong p"}},
		"more than a buffer":         {send: joined(inprocText(long), inprocText(long)), want: []string{`{"type":"pong","ref":1}`, `{"type":"pong","ref":1}`}},
		"half a head":                {send: []byte{0x89}, want: nil, code: halfCode},
		"a close frame":              {send: closing(1001, ""), code: 1001},
		"a broken frame":             {send: joined(inprocText(long), []byte{0xFF, 0xFF}), want: []string{`{"type":"pong","ref":1}`}, code: 1002},
		"a length with the top bit":  {send: []byte{0x81, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4}, code: 1002},
		"another request, pipelined": {send: []byte("GET /healthz HTTP/1.1\r\nHost: node.test\r\n\r\n"), code: 1002},
	} {
		t.Run(name, func(t *testing.T) {
			c := c.with(t)
			l := c.locate("alice", "web")
			a, conn := inprocRaw(t, c.node(l.Node).at.Listen, newInprocDial(l.Ticket).String()+string(x.send))
			w := inprocOpened(t, a, conn)
			if x.code == halfCode { // its other half comes now
				w.send(string(inprocFrame(0x89, []byte("late"))[1:]))
				x = conform{want: []string{"pong late"}}
			}
			w.conforms(x)
		})
	}
	t.Run("refused", func(t *testing.T) {
		d := newInprocDial("nonsense").String() + string(inprocText(`{"type":"ping"}`))
		a, _ := inprocRaw(t, c.nodes[0].at.Listen, d)
		inprocProblem(t, a, 401, wire.CodeUnauthorized)
	})
}

func inprocSetBearer(d *inprocDial, tk string) { d.set("Authorization", "Bearer "+tk) }

func inprocMethod(m string) func(*inprocDial, string) {
	return func(d *inprocDial, _ string) {
		d.method = m
		d.set("Content-Length", "0")
	}
}

func TestHandshakeOrigins(t *testing.T) {
	t.Parallel()
	const ours = "https://app.example.com"
	c := processes(t, locator.Config{}, wsnode.Config{AllowedOrigins: []string{ours, "https://b.example.com:8443"}})
	var table []inprocHandshake
	for _, o := range []string{ours, "https://b.example.com:8443"} {
		table = append(table, inprocHandshake{"allowed " + o, inprocSet("Origin", o), 101, ""})
	}
	for _, o := range []string{"http://localhost:3000", "http://127.0.0.1", "http://[::1]:80", "null", "", "https://app.example.com.evil.com", "https://evilapp.example.com", "https://x.app.example.com",
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

func TestTicketsRefused(t *testing.T) {
	t.Parallel()
	c := processes(t, locator.Config{}, wsnode.Config{}, wsnode.Config{})
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
	c.issued.add(forged) // the log is searched for it at the end
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

	for name, edit := range map[string]func(*inprocDial, string){
		"1 MB as bearer":      func(d *inprocDial, tk string) { d.set("Authorization", "Bearer "+tk) },
		"1 MB as subprotocol": func(d *inprocDial, tk string) { d.set("Sec-WebSocket-Protocol", "dialring.v1, dialring.ticket."+tk) },
	} {
		t.Run(name, func(t *testing.T) {
			conn := inprocConnect(t, c.node(node).at.Listen)
			d := newInprocDial("x")
			edit(d, strings.Repeat("a", 1<<20))
			sent := make(chan struct{})
			go func() { // the node does not read all of it
				defer close(sent)
				_, _ = io.WriteString(conn.Conn, d.String())
			}()
			if a, err := conn.tryAnswer(); err == nil && a.status != 431 { // or it is reset
				t.Errorf("%d %s", a.status, a.body)
			}
			_ = conn.Close()
			<-sent
			a, again := dial(t, sign(good, time.Now()))
			inprocOpened(t, a, again).alive()
		})
	}

	t.Run("the log says why", func(t *testing.T) {
		dial(t, "")
		for reason, more := range map[string]string{"invalid": "kid=", "unknown_key": "kid=", "expired": "user=" + user, "audience": "user=", "missing": "remote=" + ownAddress(t) + ":"} {
			c.log.await(t, "event=ticket_refused", "level=INFO", "reason="+reason+" ", more)
			if n := c.metric(c.node(node), fmt.Sprintf("dialring_tickets_refused_total{reason=%q}", reason)); n == "0" || n == "" {
				t.Errorf("%q refusals for %s are counted", n, reason)
			}
		}
	})
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
