package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/golang-jwt/jwt/v5"

	"github.com/dialring/dialring/client"
	"github.com/dialring/dialring/internal/wire"
)

// proxyOfEnvironment is what HTTP_PROXY names: it answers for two hosts that are nowhere else,
// and remembers what it was asked for.
type proxyOfEnvironment struct {
	url string

	mu    sync.Mutex
	asked []string // hosts
}

func startProxyOfEnvironment(t *testing.T, hosts map[string]http.Handler) *proxyOfEnvironment {
	t.Helper()
	p := &proxyOfEnvironment{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.asked = append(p.asked, r.Method+" "+r.Host)
		p.mu.Unlock()
		h := hosts[r.Host]
		if h == nil || !r.URL.IsAbs() {
			http.Error(w, "nothing of the cluster comes here", http.StatusBadGateway)
			return
		}
		h.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	p.url = s.URL
	return p
}

func (p *proxyOfEnvironment) environment() (env []string) {
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"} {
		env = append(env, name+"="+p.url, strings.ToLower(name)+"="+p.url)
	}
	return append(env, "NO_PROXY=", "no_proxy=")
}

// The proxy of the environment is for what an operator named: webhooks and key sets. What
// goes between the programs of a cluster never goes there: probes of both addresses, calls
// from locators to nodes and between nodes, relayed dials.
func TestProxyOfEnvironment(t *testing.T) {
	t.Parallel()
	public, key, _ := inprocEd25519()
	set := inprocJWKS(t, inprocOKP("one", public))
	const appSecret = "0123456789abcdef0123456789abcdef"
	p := startProxyOfEnvironment(t, map[string]http.Handler{
		"keys.example.test": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(set) }),
		"app.example.test": client.Webhook(appSecret, func(_ context.Context, m client.Sent) (any, error) {
			return "to " + m.User, nil
		}),
	})
	c := startNormalWith(t, append(p.environment(), "DIALRING_EDGE=true", "DIALRING_USER_JWKS_URL=http://keys.example.test/jwks"), 2,
		append(p.environment(), "DIALRING_APP=http://app.example.test/hook", "DIALRING_APP_SECRET="+appSecret)...)
	located := func(user string) (loc wire.LocateResponse) {
		t.Helper()
		token := inprocToken(t, jwt.SigningMethodEdDSA, key, map[string]any{"kid": "one"}, inprocClaims(map[string]any{"sub": user, "send_to": []string{"*"}}))
		status, b := callAs(t, token, "POST", "http://"+c.l.addr+"/v1/locate", `{"device":"bare"}`)
		if status != 200 {
			t.Fatalf("a token of a key that is behind the proxy: %d %s", status, b)
		}
		inprocDecode(t, b, &loc)
		return loc
	}
	// A user of each node, so that a send goes from one to the other.
	users := map[string]*bare{}
	for i := 0; len(users) < 2; i++ {
		if loc := located(fmt.Sprint("user-", i)); users[loc.Node] == nil {
			users[loc.Node] = dialLocated(t, loc)
		}
	}
	one, two := users["ws-1"], users["ws-2"]
	for i, b := range []*bare{one, two} {
		if r := c.l.push(t, b.user, fmt.Sprint(i)); r.Delivered != 1 {
			t.Errorf("a push: %+v", r)
		}
		if got := data(b.text(t)); got != fmt.Sprint(i) {
			t.Errorf("%s got %s", b.user, got)
		}
	}
	one.write(t, map[string]any{"type": "send", "ref": 1, "to": two.user, "data": 7})
	one.expectType(t, wire.TypeAck, &struct{}{})
	var m wire.Message
	if two.expectType(t, wire.TypeMessage, &m); string(m.Data) != "7" || m.From != one.user {
		t.Errorf("%s got %+v", two.user, m)
	}
	// Relayed by the locator.
	loc := located("relayed")
	resp, err := http.ReadResponse(connReader(t, c.l.addr, "GET /n/"+loc.Node+"/v1/ws HTTP/1.1\r\nHost: x\r\n"+handshakeHeaders+", "+wire.TicketSubprotocol+loc.Ticket+"\r\n\r\n"), nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Errorf("a relayed dial: %+v %v", resp, err)
	}
	p.mu.Lock()
	before := slices.Clone(p.asked)
	p.mu.Unlock()
	for _, host := range before {
		if host != "GET keys.example.test" {
			t.Errorf("the proxy was asked for %s", host)
		}
	}
	if len(before) == 0 {
		t.Error("the key set was not fetched through the proxy: the test shows nothing")
	}
	// The webhook does go there.
	one.write(t, map[string]any{"type": "send", "ref": 2, "data": 1})
	var a struct{ Data string }
	if one.expectType(t, wire.TypeAck, &a); a.Data != "to "+one.user {
		t.Errorf("the application answered %+v", a)
	}
	// A node that has gone is found out by probes, too.
	c.nodes[1].kill()
	c.l.waitMembers(t, "ws-1")
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, host := range p.asked {
		if host != "GET keys.example.test" && host != "POST app.example.test" {
			t.Errorf("the proxy was asked for %s", host)
		}
	}
	if !slices.Contains(p.asked, "POST app.example.test") {
		t.Error("the webhook was not sent through the proxy")
	}
}

// connReader sends a request and returns what is answered.
func connReader(t *testing.T, addr, request string) *bufio.Reader {
	t.Helper()
	conn := connectFrom(t, addr, "")
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	return bufio.NewReader(conn)
}
