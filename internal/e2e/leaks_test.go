package e2e

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/dialring/dialring/client"
	"github.com/dialring/dialring/client/js"
	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/ticket"
	"github.com/dialring/dialring/internal/trust"
	"github.com/dialring/dialring/internal/wire"
)

// leaks is a cluster in normal mode at LOG_LEVEL=debug, of two locators and two nodes, one each
// with a log of JSON and one of text, whose secrets are all canaries.
type leaks struct {
	*leakSearch
	t *testing.T

	ip                       string // where nodes are reached: normal mode wants no loopback
	a, b                     *locatorProc
	nodes                    map[string]*nodeProc
	collector                *otlp
	authority                *trust.Authority
	key, admin, nats, signer string // secrets
	session                  string // cookie of the dashboard
	hook                     atomic.Pointer[http.HandlerFunc]
}

func startLeaks(t *testing.T) *leaks {
	t.Helper()
	x := &leaks{leakSearch: newLeakSearch(), t: t, ip: ownAddress(t), nodes: map[string]*nodeProc{}, collector: startCollector(t)}
	x.key, x.admin, x.nats = x.canary("the API key"), x.canary("the admin key"), x.canary("the NATS token")
	x.signer = x.canary("the secret of user tokens") + strings.Repeat("x", 32)
	app := x.canary("the application's secret") + strings.Repeat("x", 32)
	clusterKey := trust.NewClusterKey()
	var err error
	if x.authority, err = trust.ParseAuthority("dialring", clusterKey); err != nil {
		t.Fatal(err)
	}
	nodeKey, err := x.authority.NewNodeKey("ws-*")
	if err != nil {
		t.Fatal(err)
	}
	x.secret("the cluster key", clusterKey)
	x.secret("the node key", nodeKey)
	seed, err := base64.RawURLEncoding.DecodeString(clusterKey[strings.Index(clusterKey, "_")+1:])
	if err != nil {
		t.Fatal(err)
	}
	x.secret("the cluster key's bytes", string(seed))
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*x.hook.Load())(w, r) }))
	t.Cleanup(hook.Close)
	base := []string{"DIALRING_DEV=false", "DIALRING_LOG_LEVEL=debug", "DIALRING_RATE_PER_ADDRESS=-1", "DIALRING_OTLP_ENDPOINT=" + x.collector.url,
		"DIALRING_ADMIN_KEY_FILE=" + file("admin", x.admin), "GOTRACEBACK=system"}
	locators := append([]string{"DIALRING_API_KEYS=" + x.key, "DIALRING_TRACE_RATIO=1", "DIALRING_EDGE=true"}, base...)
	x.a = startLocator(t, append(locators, "DIALRING_DATA_SYNC=interval", "DIALRING_CLUSTER_KEY_FILE="+file("cluster", clusterKey), "DIALRING_NATS_TOKEN_FILE="+file("nats", x.nats), "DIALRING_USER_JWT_SECRET_FILE="+file("jwt", x.signer))...)
	natsURL := "nats://" + x.nats + "@" + strings.TrimPrefix(x.a.nats, "nats://")
	x.b = &locatorProc{addr: fmt.Sprintf("127.0.0.1:%d", freePort(t)), admin: fmt.Sprintf("127.0.0.1:%d", freePort(t))}
	x.b.process = start(t, "locator in text", filepath.Join(bin, "locator"), append(locators, "DIALRING_LOG_FORMAT=text", "DIALRING_CLUSTER_KEY="+clusterKey, "DIALRING_USER_JWT_SECRET="+x.signer,
		"DIALRING_LISTEN="+x.b.addr, "DIALRING_ADMIN_LISTEN="+x.b.admin, "DIALRING_NATS_URL="+natsURL))
	for _, id := range []string{"ws-1", "ws-2"} {
		n := &nodeProc{id: id, addr: fmt.Sprintf("%s:%d", x.ip, freePort(t)), peer: fmt.Sprintf("%s:%d", x.ip, freePort(t)), admin: fmt.Sprintf("127.0.0.1:%d", freePort(t))}
		env := append([]string{"DIALRING_NODE_ID=" + id, "DIALRING_LISTEN=" + n.addr, "DIALRING_PEER_LISTEN=" + n.peer, "DIALRING_ADMIN_LISTEN=" + n.admin,
			"DIALRING_NODE_URL=ws://" + n.addr, "DIALRING_PEER_URL=http://" + n.peer, "DIALRING_APP=" + hook.URL, "DIALRING_APP_TIMEOUT=1s", "DIALRING_MAX_MESSAGE_BYTES=65536"}, base...)
		if id == "ws-1" {
			env = append(env, "DIALRING_LOG_FORMAT=json", "DIALRING_NATS_URL="+x.a.nats, "DIALRING_NATS_TOKEN="+x.nats, "DIALRING_APP_SECRET="+app, "DIALRING_NODE_KEY="+nodeKey)
		} else {
			env = append(env, "DIALRING_LOG_FORMAT=text", "DIALRING_NATS_URL_FILE="+file("url", natsURL), "DIALRING_APP_SECRET_FILE="+file("app", app), "DIALRING_NODE_KEY_FILE="+file("node", nodeKey))
		}
		n.process = start(t, id, filepath.Join(bin, "wsnode"), env)
		x.nodes[id] = n
	}
	for _, l := range []*locatorProc{x.a, x.b} {
		eventually(t, "both nodes are in the ring", func() bool {
			var r wire.RingResponse
			status, b := x.do("GET", "http://"+l.addr+"/v1/ring", "", "Authorization", "Bearer "+x.key)
			return status == 200 && json.Unmarshal(b, &r) == nil && len(r.Nodes) == 2 && r.Nodes[0].Share > 0 && r.Nodes[1].Share > 0
		})
	}
	return x
}

const answers = "an answer"

// do does a request, and gathers what is answered: all headers, and all bodies but the one that
// is a ticket by right. Status 0: there was no answer.
func (x *leaks) do(method, url, body string, headers ...string) (int, []byte) {
	x.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		x.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	req.Host, req.Close = req.Header.Get("Host"), true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, nil
	}
	if c := resp.Cookies(); len(c) == 1 && resp.StatusCode == 204 { // the dashboard's, by right
		x.session = c[0].Name + "=" + c[0].Value
		if c[0].Value != "" {
			x.secret("the session of the dashboard", c[0].Value)
		}
		resp.Header.Del("Set-Cookie")
	}
	x.gather(answers, fmt.Appendf(nil, "%s %d %v", method, resp.StatusCode, resp.Header))
	if resp.StatusCode != 200 || !strings.Contains(url, "/v1/locate") {
		x.gather(answers, b)
	}
	return resp.StatusCode, b
}

// expect does a request that must be answered so.
func (x *leaks) expect(want int, method, url, body string, headers ...string) []byte {
	x.t.Helper()
	status, b := x.do(method, url, body, headers...)
	for tries := 0; status == 0 && tries < 20; tries++ { // whoever sends too much may be reset before it reads why
		status, b = x.do(method, url, body, headers...)
	}
	if status != want {
		x.t.Errorf("%s %s: %d, want %d: %.300s", method, url, status, want, b)
	}
	return b
}

// raw sends bytes, and gathers what comes back until the connection ends, or for a moment.
func (x *leaks) raw(addr, text string) string {
	x.t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		x.t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, text)
	_ = c.(*net.TCPConn).CloseWrite()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	b, _ := io.ReadAll(c)
	x.gather(answers, b)
	return string(b)
}

// token is a user token.
func (x *leaks) token(user string, expires time.Duration, secret string) string {
	x.t.Helper()
	s, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"sub": user, "exp": time.Now().Add(expires).Unix(), "send_to": []string{"leak-*"}, "x": x.canary("a claim of a token")}).SignedString([]byte(secret))
	if err != nil {
		x.t.Fatal(err)
	}
	x.secret("the token of "+user, s)
	return s
}

func (x *leaks) locate(l *locatorProc, user string) wire.LocateResponse {
	x.t.Helper()
	var r wire.LocateResponse
	b := x.expect(200, "POST", "http://"+l.addr+"/v1/locate", `{"device":"leaky"}`, "Authorization", "Bearer "+x.token(user, time.Hour, x.signer))
	if err := json.Unmarshal(b, &r); err != nil {
		x.t.Fatal(err)
	}
	x.secret("a ticket of "+user, r.Ticket)
	return r
}

// payload is JSON with a canary among characters that encodings change.
func (x *leaks) payload(what string) string {
	b, err := json.Marshal(`"<é>/+ ` + x.canary("the payload of "+what) + ` %&\`)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// users finds a user of a node.
func (x *leaks) user(node string) string {
	r := ring.Of(equal("ws-1", "ws-2"))
	for i := 0; ; i++ {
		u := fmt.Sprintf("leak-%d", i)
		if o, _ := r.Owner(u); o.ID == node {
			return u
		}
	}
}

// No secret shows anywhere: everything is done with canaries, well and badly, and then everything
// that the processes show is searched for them.
func TestNoLeaks(t *testing.T) {
	t.Parallel()
	x := startLeaks(t)
	x.proof(answers, "leak-", `"code":"unauthorized"`, `"code":"too_large"`, `"code":"misdirected"`, "Www-Authenticate")
	for i, l := range []*locatorProc{x.a, x.b} {
		x.services(l)
		x.users(l)
		x.operators(l)
		x.sessions(l, fmt.Sprintf("ws-%d", i+1))
	}
	x.dials()
	x.peers()
	x.sdks()
	x.aNodeStands()
	x.profiles()
	x.natsDies()
	x.crashes()

	x.collector.mu.Lock()
	x.gather("the traces", x.collector.raw)
	x.collector.mu.Unlock()
	x.proof("the traces", "POST /v1/push/{user}", "append", "wsnode")
	found, missing := x.find()
	for _, s := range append(found, missing...) {
		t.Error(s)
	}
}

// services call with the key, without one, and with wrong ones.
func (x *leaks) services(l *locatorProc) {
	at, key := "http://"+l.addr, []string{"Authorization", "Bearer " + x.key}
	with := func(more ...string) []string { return append(more, key...) }
	user := x.user("ws-1")
	x.expect(200, "POST", at+"/v1/push/"+user, x.payload("a stored push"), key...)
	x.expect(200, "POST", at+"/v1/push/"+user+"?durable=false", x.payload("an ephemeral push"), key...)
	x.expect(200, "POST", at+"/v1/push/"+user, x.payload("bytes"), with("Content-Type", "application/octet-stream")...)
	idem := x.canary("an idempotency key")
	x.expect(200, "POST", at+"/v1/push/"+user, x.payload("a key's first"), with("Idempotency-Key", idem)...)
	x.expect(422, "POST", at+"/v1/push/"+user, x.payload("a key's second"), with("Idempotency-Key", idem)...)
	x.expect(400, "POST", at+"/v1/push/"+user, "1", with("Idempotency-Key", strings.Repeat(idem, 10))...)
	x.expect(200, "POST", at+"/v1/push", `{"users":["`+user+`","leak-b"],"data":`+x.payload("many")+`}`, key...)
	x.expect(200, "POST", at+"/v1/push", `{"messages":[{"user":"`+user+`","data":`+x.payload("messages")+`},{"user":"","data":`+x.payload("a bad message")+`}]}`, key...)
	x.expect(200, "POST", at+"/v1/push", `{"user":"`+user+`","data":`+x.payload("a stream")+"}\n"+`{"user":7,"data":`+x.payload("a bad line")+"}\nnonsense "+x.payload("nonsense")+"\n",
		with("Content-Type", "application/x-ndjson")...)
	x.expect(200, "POST", at+"/v1/broadcast", `{"data":`+x.payload("a broadcast")+`}`, key...)
	x.expect(204, "PUT", at+"/v1/groups/leak-group/members/"+user, "", key...)
	x.do("POST", at+"/v1/push?group=leak-group", `{"data":`+x.payload("a group's push")+`}`, key...)
	x.expect(200, "GET", at+"/v1/users/"+user, "", key...)
	x.expect(400, "POST", at+"/v1/push/"+user+"?durable=perhaps", x.payload("a bad query"), key...)
	x.expect(413, "POST", at+"/v1/push/"+user, x.payload("a long push")+strings.Repeat(" ", 70000), key...)
	x.expect(415, "POST", at+"/v1/push/"+user, x.payload("a compressed push"), with("Content-Encoding", "gzip")...)
	for _, body := range []string{`{"users":`, `{"users":["` + user + `"],"data":`, `{"users":7,"x":`, `{"messages":[{"user":[`, `[`, `x`, strings.Repeat("[", 40)} {
		x.expect(400, "POST", at+"/v1/push", body+x.payload("garbage"), key...)
		x.expect(400, "POST", at+"/v1/broadcast", body+x.payload("garbage"), key...)
	}
	for _, auth := range []string{"Bearer " + x.canary("a wrong key"), "Bearer " + x.key + "x", "Basic " + x.key, x.key, "Bearer " + x.token(user, time.Hour, x.signer), "Bearer " + x.admin} {
		x.expect(401, "POST", at+"/v1/push/"+user, x.payload("a refused push"), "Authorization", auth)
	}
	x.expect(401, "GET", at+"/v1/ring?api_key="+x.key+"&access_token="+x.canary("a key in a query"), "", "X-Api-Key", x.key, "Cookie", "key="+x.key)
	x.expect(400, "DELETE", at+"/v1/users/"+user+"/sessions?api_key="+x.key, "", key...)
	x.expect(401, "POST", at+"/v1/push/"+x.canary("a key in a path"), x.payload("a push to a key"))
	x.expect(404, "GET", at+"/nothing?api_key="+x.key, "", key...)
	x.expect(404, "GET", at+"/metrics", "", key...)
	x.expect(405, "PUT", at+"/v1/broadcast", x.payload("a wrong method"), key...)
}

// users locate with good tokens and bad ones.
func (x *leaks) users(l *locatorProc) {
	at := "http://" + l.addr + "/v1/locate"
	good := x.token("leak-a", time.Hour, x.signer)
	for _, token := range []string{x.token("leak-a", -time.Hour, x.signer), x.token("leak-a", time.Hour, x.canary("a stranger's secret")), x.token("", time.Hour, x.signer), good + "x", good[:len(good)-4],
		x.canary("no token"), good + strings.Repeat("x", 9000), x.key} {
		x.expect(401, "POST", at, "", "Authorization", "Bearer "+token)
		x.do("POST", at+"?token="+token, "", "Cookie", "token="+token)
	}
	x.expect(401, "GET", at+"?user=leak-a", "")
	x.expect(403, "POST", at, "", "Authorization", "Bearer "+good, "Origin", "https://evil.example.com")
	x.expect(400, "POST", at, `{"device":7,"x":`+x.payload("a locate"), "Authorization", "Bearer "+good)
	x.expect(413, "POST", at, `{"x":`+x.payload("a long locate")+strings.Repeat(" ", 20000)+`}`, "Authorization", "Bearer "+good)
	// What net/http refuses itself.
	for _, head := range []string{"Authorization : Bearer " + good, "Authorization: Bearer " + good + "\x01", "X: " + strings.Repeat(x.key, 2000), good, "Content-Length: " + x.key, "Transfer-Encoding: " + x.key} {
		x.raw(l.addr, "GET /v1/locate HTTP/1.1\r\nHost: x\r\n"+head+"\r\n\r\n")
	}
	x.raw(l.addr, "\x16\x03\x01\x02\x00\x01"+x.key)
	x.raw(l.addr, "GET /v1/locate?"+x.key+" "+x.key+" "+x.key+"\r\n\r\n")
	x.raw(l.addr, "GET /%zz"+x.key+" HTTP/1.1\r\nHost: "+x.key+"\r\n\r\n")
}

// operators use the admin listener, with its key and without.
func (x *leaks) operators(l *locatorProc) {
	at, key := "http://"+l.admin, []string{"Authorization", "Bearer " + x.admin}
	for range 12 { // some are told that it is wrong, others that they are too many
		x.do("GET", at+"/admin/v1/state", "", "Authorization", "Bearer "+x.canary("a wrong admin key"))
		x.do("POST", at+"/admin/login", `{"key":"`+x.canary("a wrong admin key")+`"}`)
	}
	x.expect(400, "POST", at+"/admin/login", `{"key":"`+x.admin)
	x.expect(204, "POST", at+"/admin/login", `{"key":"`+x.admin+`"}`)
	cookie := []string{"Cookie", x.session}
	user := x.user("ws-2")
	for _, who := range [][]string{key, cookie} {
		for _, path := range []string{"me", "state", "users/=" + user} {
			x.expect(200, "GET", at+"/admin/v1/"+path, "", who...)
		}
		x.expect(200, "POST", at+"/admin/v1/users/="+user+"/push", x.payload("a push of an operator"), who...)
		x.expect(413, "POST", at+"/admin/v1/users/="+user+"/push", x.payload("a long push of an operator")+strings.Repeat(" ", 70000), who...)
		x.expect(400, "POST", at+"/admin/v1/plan", `{"add":`+x.payload("a plan"), who...)
	}
	for _, path := range []string{"/", "/?key=" + x.admin, "/nothing?key=" + x.admin} {
		x.do("GET", at+path, "", key...)
	}
	x.expect(403, "GET", at+"/metrics", "", "Host", "evil.example.com", "Origin", "https://evil.example.com", "Sec-Fetch-Site", "cross-site")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", at+"/admin/v1/events", nil)
	if err != nil {
		x.t.Fatal(err)
	}
	req.Header.Set("Cookie", x.session)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		x.t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	for n := 0; n < 3; { // the whole state, and what changes
		b, err := lines.ReadBytes('\n')
		if err != nil {
			x.t.Fatal(err)
		}
		x.gather("the dashboard's stream", b)
		if strings.HasPrefix(string(b), "data:") {
			n++
		}
	}
	x.proof("the dashboard's stream", "ws-1", "ws-2")
	x.expect(204, "POST", at+"/admin/logout", "{}", cookie...)
	x.expect(401, "GET", at+"/admin/v1/state", "", cookie...)
}

// sessions send, to the application and to each other, and break the rules.
func (x *leaks) sessions(l *locatorProc, node string) {
	answer := func(status int, body string) {
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		})
		x.hook.Store(&h)
	}
	user := x.user(node)
	b := dialLocated(x.t, x.locate(l, user))
	send := func(ref, to, data string) string {
		rawFrame(b, 1, `{"type":"send","ref":"`+ref+`",`+to+`"data":`+data+`}`)
		for {
			if f := b.text(x.t); strings.Contains(f, `"ref":"`+ref+`"`) {
				return f
			}
		}
	}
	for i, c := range []struct {
		status int
		body   string
		want   string
	}{{200, x.payload("an application's answer"), `"ack"`}, {400, `{"detail":` + x.payload("a refusal") + `}`, `"error"`}, {500, x.payload("a failure"), `"error"`}, {200, "nonsense " + x.payload("nonsense"), `"error"`},
		{200, `"` + strings.Repeat("x", 70000) + x.payload("a long answer"), `"error"`}} {
		answer(c.status, c.body)
		if f := send(fmt.Sprint("app", i), "", x.payload("a send to the application")); !strings.Contains(f, c.want) {
			x.t.Errorf("the application answers %d, and the client gets %s", c.status, f)
		}
	}
	// An answer that is longer than it says: net/http's client tells the standard log of the rest.
	rest := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"+x.payload("the rest of an answer"))
		_, _ = io.Copy(io.Discard, c)
	})
	x.hook.Store(&rest)
	if f := send("rest", "", x.payload("a send to the application")); !strings.Contains(f, `"ack"`) {
		x.t.Errorf("an answer with a rest: %s", f)
	}
	if f := send("user", `"to":"leak-b",`, x.payload("a send to a user")); !strings.Contains(f, `"ack"`) {
		x.t.Errorf("a send to a user: %s", f)
	}
	if f := send("other", `"to":"other",`, x.payload("a send that is not allowed")); !strings.Contains(f, `"forbidden"`) {
		x.t.Errorf("a send that is not allowed: %s", f)
	}
	rawFrame(b, 1, `{"type":"ack","cursor":`+x.payload("a cursor")+`}`)
	for what, frame := range map[string]struct {
		op   byte
		text string
	}{
		"no JSON": {1, x.payload("a frame") + "}"}, "binary": {2, x.payload("a binary frame")}, "no UTF-8": {1, x.payload("a frame") + "\xff"}, "another type": {1, `{"type":7,"x":` + x.payload("a frame") + `}`},
		"too long": {1, `{"type":"send","ref":"x","data":` + x.payload("a long send") + strings.Repeat(" ", 75000) + `}`}, "a control frame": {9, x.payload("a ping")}, "its end": {8, "\x0f\xa0" + x.payload("a reason")},
		"an unknown opcode": {3, x.payload("a frame")},
	} {
		c := dialLocated(x.t, x.locate(l, user))
		rawFrame(c, frame.op, frame.text)
		x.frames(what, c)
	}
	// The frame that panics in gws, and a client that is gone.
	c := dialLocated(x.t, x.locate(l, user))
	_, _ = c.Write(append([]byte{0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4}, x.payload("behind a frame that panics")...))
	x.frames("a length of 2^63", c)
	c = dialLocated(x.t, x.locate(l, user))
	_ = c.Conn.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
	x.expect(200, "POST", "http://"+l.addr+"/v1/push/"+user, x.payload("a push to one that is gone"), "Authorization", "Bearer "+x.key)
}

// frames gathers the end of a connection. Messages of the user are there by right.
func (x *leaks) frames(what string, c *bare) {
	x.t.Helper()
	_ = c.CloseWrite()
	for {
		op, p, err := c.frameBy(x.t, time.Now().Add(patience), what)
		if err != nil {
			return
		}
		if op == 8 {
			x.gather("a close frame", p)
			x.proof("a close frame", "")
		}
	}
}

// CloseWrite ends what a client sends.
func (b *bare) CloseWrite() error { return b.Conn.(*net.TCPConn).CloseWrite() }

// rawFrame sends one masked frame.
func rawFrame(b *bare, op byte, text string) { _, _ = b.Write(inprocFrame(0x80|op, []byte(text))) }

// dials go wrong in each way, at nodes and through a locator.
func (x *leaks) dials() {
	for _, id := range []string{"ws-1", "ws-2"} {
		user, n := x.user(id), x.nodes[id]
		other := x.user(map[string]string{"ws-1": "ws-2", "ws-2": "ws-1"}[id])
		dial := func(want int, addr, path, ticket string, edit ...string) {
			x.t.Helper()
			d := newInprocDial(ticket)
			d.target = path
			for i := 0; i < len(edit); i += 2 {
				if edit[i+1] == "" {
					d.set(edit[i])
				} else {
					d.set(edit[i], edit[i+1])
				}
			}
			c := inprocConnect(x.t, addr)
			c.send(d.String())
			a := c.answer()
			if a.status != want {
				x.t.Errorf("%s %s %q: %d %s, want %d", addr, path, edit, a.status, a.body, want)
			}
			x.gather(answers, fmt.Appendf(nil, "%v\n%s", a.header, a.body))
			_ = c.Close()
		}
		for _, at := range []struct{ addr, path string }{{n.addr, "/v1/ws"}, {x.a.addr, "/n/" + id + "/v1/ws"}, {x.b.addr, "/n/" + id + "/v1/ws"}} {
			t := x.locate(x.a, user).Ticket
			dial(101, at.addr, at.path, t)
			dial(401, at.addr, at.path, t)
			t = x.locate(x.b, user).Ticket
			dial(101, at.addr, at.path, t, "Sec-WebSocket-Protocol", "dialring.v1", "Authorization", "Bearer "+t)
			dial(401, at.addr, at.path, t, "Sec-WebSocket-Protocol", "dialring.v1", "Authorization", "Bearer "+t)
			dial(401, at.addr, at.path, x.locate(x.a, other).Ticket)
			t = x.locate(x.a, user).Ticket
			dial(401, at.addr, at.path, t[:len(t)-2])
			dial(401, at.addr, at.path, x.canary("no ticket"))
			dial(400, at.addr, at.path, t, "Authorization", "Bearer "+t)
			dial(400, at.addr, at.path, t, "Sec-WebSocket-Protocol", "dialring.ticket."+t)
			dial(400, at.addr, at.path+"?since="+strings.Repeat(x.canary("a cursor"), 5), t)
			dial(400, at.addr, at.path+"?ticket="+t+"&%zz", t)
			dial(401, at.addr, at.path+"?ticket="+t, "", "Sec-WebSocket-Protocol", "dialring.v1", "Cookie", "ticket="+t)
			dial(403, at.addr, at.path, t, "Origin", "https://evil.example.com")
			dial(426, at.addr, at.path, t, "Sec-WebSocket-Version", "12")
			dial(404, at.addr, "/nothing?ticket="+t, t)
			dial(101, at.addr, at.path+"?since=0&token="+t, t)
		}
		for _, s := range x.tickets(id, user, other) {
			dial(s.status, n.addr, "/v1/ws", s.ticket)
		}
		x.raw(n.addr, "GET /v1/ws HTTP/1.1\r\nHost: x\r\nSec-WebSocket-Protocol : dialring.ticket."+x.locate(x.a, user).Ticket+"\r\n\r\n")
		x.raw(n.addr, "GET /v1/ws?"+x.key+" "+x.key+"\r\n\r\n")
	}
}

type leakyTicket struct {
	status int
	ticket string
}

// tickets are some that no locator would give: one that has expired, and one for the wrong node.
func (x *leaks) tickets(node, user, other string) []leakyTicket {
	log := newInprocLog()
	conn, err := cluster.Connect(cluster.Options{URL: x.a.nats, Token: x.nats, Cluster: "dialring", Identity: cluster.Identity{Locator: x.authority}, Role: "locator", Name: "test", Log: log.logger()})
	if err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(conn.Close)
	s := ticket.NewSigner()
	keys := cluster.NewKeys(conn, cluster.NewRings(conn, log.logger()), log.logger(), s, "locator:test-"+node)
	inprocRun(x.t, "keys", keys.Run)
	select {
	case <-keys.Published():
	case <-time.After(patience):
		x.t.Fatal("the key was never published")
	}
	now := time.Now()
	out := []leakyTicket{{401, s.Ticket(ticket.Ticket{User: user, Device: "d", Node: node}, now.Add(-time.Hour))}, {421, s.Ticket(ticket.Ticket{User: other, Device: "d", Node: node}, now)}}
	for _, o := range out {
		x.secret("a ticket that was made up", o.ticket)
	}
	return out
}

// peers: strangers at the peer address, and at the embedded NATS.
func (x *leaks) peers() {
	for _, n := range x.nodes {
		x.expect(401, "GET", "http://"+n.peer+peer.Path, "", "Authorization", "Bearer "+x.canary("a peer token"))
		x.expect(401, "GET", "http://"+n.peer+"/v1/ws", "", peer.HeaderEdge, x.canary("an edge token"), peer.HeaderClient, x.canary("an address"))
		x.raw(n.peer, x.canary("nonsense")+"\r\n\r\n")
		for _, path := range []string{"/debug/pprof/?key=" + x.admin, "/debug/pprof/heap"} {
			x.do("GET", "http://"+n.admin+path, "", "Authorization", "Bearer "+x.canary("a wrong admin key"))
		}
	}
	for _, hello := range []string{`CONNECT {"auth_token":"` + x.canary("a wrong NATS token") + `","verbose":true}`, `CONNECT {"user":"stranger","pass":"` + x.canary("a NATS password") + `"}`,
		`CONNECT {"auth_token":"` + x.nats, "PUB x 5\r\n" + x.nats} {
		x.raw(strings.TrimPrefix(x.a.nats, "nats://"), hello+"\r\nPING\r\n")
	}
}

// aNodeStands: pushes to users of a node that does not move.
func (x *leaks) aNodeStands() {
	n := x.nodes["ws-2"]
	if err := n.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		x.t.Fatal(err)
	}
	user, status := x.user("ws-2"), 200
	for _, query := range []string{"?durable=false", ""} {
		for _, l := range []*locatorProc{x.a, x.b} {
			status, _ = x.do("POST", "http://"+l.addr+"/v1/push/"+user+query, x.payload("a push to a node that stands"), "Authorization", "Bearer "+x.key)
			x.do("POST", "http://"+l.addr+"/v1/push"+query, `{"users":["`+user+`"],"data":`+x.payload("pushes to a node that stands")+`}`, "Authorization", "Bearer "+x.key)
			x.raw(l.addr, "GET /n/ws-2/v1/ws HTTP/1.1\r\nHost: x\r\n"+handshakeHeaders+"\r\nAuthorization: Bearer "+x.key+"\r\n\r\n")
		}
	}
	if err := n.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		x.t.Fatal(err)
	}
	eventually(x.t, "the user is reached again", func() bool {
		status, _ = x.do("POST", "http://"+x.a.addr+"/v1/push/"+user, x.payload("a push"), "Authorization", "Bearer "+x.key)
		return status == 200
	})
}

// profiles and metrics of each process.
func (x *leaks) profiles() {
	for name, admin := range map[string]string{"locator a": x.a.admin, "locator b": x.b.admin, "ws-1": x.nodes["ws-1"].admin, "ws-2": x.nodes["ws-2"].admin} {
		get := func(path string, want int) []byte {
			status, b := adminCall(x.t, "GET", "http://"+admin+path, "", "Authorization", "Bearer "+x.admin)
			if status != want {
				x.t.Errorf("%s %s: %d", name, path, status)
			}
			return b2(b)
		}
		for path, proof := range map[string]string{"heap?debug=1": "heap profile", "goroutine?debug=1": "goroutine profile", "goroutine?debug=2": "goroutine ", "allocs?debug=1": "heap profile", "": "goroutine", "trace?seconds=0.1": "go 1."} {
			place := name + ", profile " + path
			x.gather(place, get("/debug/pprof/"+path, 200))
			x.proof(place, proof)
		}
		for _, path := range []string{"heap", "goroutine"} {
			place := name + ", compressed profile " + path
			x.gather(place, gunzipped(x.t, get("/debug/pprof/"+path, 200)))
			x.proof(place, "dialring")
		}
		get("/debug/pprof/cmdline", 404)
		x.gather(name+", metrics", get("/metrics", 200))
		x.proof(name+", metrics", "dialring_")
	}
}

func b2(s string) []byte { return []byte(s) }

// sdks: what the SDKs and the command line say, when all is well and when it is not.
func (x *leaks) sdks() {
	const place = "the Go SDK"
	say := func(format string, args ...any) { x.gather(place, fmt.Appendf(nil, format, args...)) }
	user := x.user("ws-1")
	dead := fmt.Sprintf("http://127.0.0.1:%d", freePort(x.t))
	good := []string{"http://" + x.a.addr}
	listen := func(locators []string, token string) error {
		got, events := make(chan struct{}, 100), make(chan client.Event, 100)
		c, err := client.New(client.Config{Locators: locators, Token: client.StaticToken(token), Device: "sdk",
			OnMessage: func(context.Context, client.Message) { got <- struct{}{} },
			OnEvent: func(e client.Event) {
				say("%v %+v %#v", e.State, e, e)
				events <- e
			}})
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		ended := make(chan error, 1)
		go func() { ended <- c.Run(ctx) }()
		for seen := 0; ; {
			select {
			case err := <-ended:
				return err
			case e := <-events:
				if seen++; e.State == client.Connected || seen == 6 {
					cancel()
					return <-ended
				}
			case <-time.After(patience):
				x.t.Fatal("the SDK does nothing")
			}
		}
	}
	for _, locators := range [][]string{good, {dead}} {
		for _, token := range []string{x.token(user, time.Hour, x.signer), x.token(user, -time.Hour, x.signer), x.canary("no token")} {
			err := listen(locators, token)
			say("%v %+v %#v", err, err, err)
		}
		for _, key := range []string{x.key, x.canary("a wrong key"), x.key + "\n"} {
			p, err := client.NewPusher(client.PusherConfig{Locators: locators, APIKey: key, Attempts: 1})
			say("%v", err)
			if err != nil {
				continue
			}
			r, err := p.Push(x.t.Context(), user, json.RawMessage(x.payload("a push of the SDK")))
			say("%+v %v", r, err)
			_, err = p.Push(x.t.Context(), user, x.payload("a long push")+strings.Repeat("x", 70000))
			say("%v", err)
		}
	}
	_, err := client.New(client.Config{Locators: []string{"ftp://u:" + x.canary("a password of a locator") + "@x.example.com"}, Token: client.StaticToken("x")})
	say("%v", err)
	x.proof(place, "connected", "locating", "unauthorized", "is no locator's URL")
	x.commands(dead)
	x.javaScript(dead)
}

// commands runs the command line.
func (x *leaks) commands(dead string) {
	run := func(env []string, args ...string) {
		x.t.Helper()
		p := start(x.t, "dialring", filepath.Join(bin, "dialring"), env, args...)
		select {
		case <-p.done:
		case <-time.After(patience):
			x.t.Fatalf("dialring %q does not end", args)
		}
		x.gather("the command line", b2(p.text()))
	}
	dir := x.t.TempDir()
	for i, token := range []string{x.token("leak-cli", -time.Hour, x.signer), x.canary("no token")} {
		file := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
			x.t.Fatal(err)
		}
		for _, l := range []string{"http://" + x.a.addr, dead} {
			run([]string{"DIALRING_CLI_LOCATOR=" + l}, "listen", "--token-file", file, "--count", "1")
			run([]string{"DIALRING_CLI_LOCATOR=" + l, "DIALRING_CLI_TOKEN=" + token}, "listen", "--count", "1")
		}
	}
	for _, key := range []string{x.key, x.canary("a wrong key")} {
		for _, l := range []string{"http://" + x.a.addr, dead} {
			run([]string{"DIALRING_CLI_LOCATOR=" + l, "DIALRING_CLI_API_KEY=" + key}, "push", "leak-cli", x.payload("a push of the command line"), "--timeout", "2s")
			run([]string{"DIALRING_CLI_LOCATOR=" + l, "DIALRING_CLI_API_KEY=" + key}, "ring", "--timeout", "2s")
		}
	}
	run([]string{"DIALRING_CLI_LOCATOR=ftp://u:" + x.canary("a password of a locator") + "@x.example.com", "DIALRING_CLI_API_KEY=" + x.key}, "ring")
	x.proof("the command line", "API key", "token", "ws-1", "is no locator's URL")
}

// jsLeaky prints all that the JavaScript SDK tells, until it is connected, stopped or waits.
const jsLeaky = `
import { Client } from "./dialring.js";
const client = new Client({
  locators: [process.env.LOCATOR], token: () => process.env.TOKEN, device: "js",
  onMessage() {},
  onEvent(e) {
    console.log(e, JSON.stringify(e), String(e.error), e.error?.stack, e.error?.cause);
    if (["connected", "stopped", "waiting"].includes(e.state) && e.state !== "locating" && (e.error || e.state === "connected")) setImmediate(() => process.exit(0));
  },
});
console.log(client, JSON.stringify(client));
client.run().catch(e => { console.log(e, String(e), e.stack); process.exit(0); });
`

// javaScript runs the JavaScript SDK in Node, if there is one.
func (x *leaks) javaScript(dead string) {
	const place = "the JavaScript SDK"
	if !hasNode(x.t) {
		return
	}
	dir := x.t.TempDir()
	for name, source := range map[string]string{"dialring.js": js.Source, "leaky.js": jsLeaky, "package.json": `{"type":"module"}`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(source), 0o600); err != nil {
			x.t.Fatal(err)
		}
	}
	for _, token := range []string{x.token("leak-js", time.Hour, x.signer), x.token("leak-js", -time.Hour, x.signer)} {
		for _, l := range []string{"http://" + x.a.addr, dead} {
			p := start(x.t, "node", "node", []string{"LOCATOR=" + l, "TOKEN=" + token}, nodeWebSocket, filepath.Join(dir, "leaky.js"))
			select {
			case <-p.done:
			case <-time.After(patience):
				x.t.Fatalf("Node does not end:\n%s", p.text())
			}
			x.gather(place, b2(p.text()))
		}
	}
	x.proof(place, "connected", "ws-1", "unauthorized", "fetch failed")
}

// natsDies: the locator with the embedded NATS is ended with a dump of its goroutines, and what needs
// the store fails at the other one.
func (x *leaks) natsDies() {
	dump(x.t, x.a.process, syscall.SIGQUIT)
	key := []string{"Authorization", "Bearer " + x.key}
	eventually(x.t, "a stored push is refused", func() bool {
		status, _ := x.do("POST", "http://"+x.b.addr+"/v1/push/"+x.user("ws-1"), x.payload("a push without a store"), key...)
		return status == 503
	})
	x.do("POST", "http://"+x.b.addr+"/v1/push", `{"users":["leak-b"],"data":`+x.payload("pushes without a store")+`}`, key...)
	x.do("POST", "http://"+x.b.addr+"/v1/push/"+x.user("ws-1")+"?durable=false", x.payload("an ephemeral push without a store"), key...)
	b := dialLocated(x.t, x.locate(x.b, x.user("ws-1")))
	rawFrame(b, 1, `{"type":"send","ref":"x","to":"leak-b","data":`+x.payload("a send without a store")+`}`)
	eventually(x.t, "the send is answered", func() bool { return strings.Contains(b.text(x.t), `"ref":"x"`) })
}

// dump ends a process with a signal at which Go prints all goroutines.
func dump(t *testing.T, p *process, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Fatalf("%s does not end", p.name)
	}
}

// crashes ends the other processes, and gathers all that they have written.
func (x *leaks) crashes() {
	dump(x.t, x.b.process, syscall.SIGABRT)
	dump(x.t, x.nodes["ws-1"].process, syscall.SIGQUIT)
	dump(x.t, x.nodes["ws-2"].process, syscall.SIGABRT)
	for _, p := range []*process{x.a.process, x.b.process, x.nodes["ws-1"].process, x.nodes["ws-2"].process} {
		x.gather(p.name, b2(p.text()))
		x.proof(p.name, "goroutine ", "SIG", "listening", "nats")
	}
	for _, p := range x.nodes {
		x.proof(p.name, "session_opened", "leak-", "peer_refused")
	}
	x.proof("locator", "admin_refused", "leak-", "nats_server", `"level":"DEBUG"`)
	x.proof("locator in text", "admin_refused", "leak-", "level=INFO")
	x.proof("ws-2", "level=DEBUG")
}
