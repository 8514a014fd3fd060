package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/ring"
)

// adminCall asks an admin listener; headers are names and values in turn.
func adminCall(t *testing.T, method, address, body string, headers ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequest(method, address, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// Both programs, as they are started: who gets at what of their admin listeners.
func TestAdminListeners(t *testing.T) {
	t.Parallel()
	const key = "an admin key of the tests"
	bearer := []string{"Authorization", "Bearer " + key}
	service := []string{"Authorization", "Bearer dev"} // the API key of services
	type listener struct {
		name, addr      string
		locator, guards bool
	}
	closed := startNormalLocator(t, "DIALRING_ADMIN_LISTEN=0.0.0.0:0")
	open := startNormalLocator(t, "DIALRING_ADMIN_KEY="+key)
	free, guarded := startNormalNode(t, "ws-1", open.nats), startNormalNode(t, "ws-2", open.nats, "DIALRING_ADMIN_KEY="+key)
	all := []listener{{"a node without a key", free.admin, false, false}, {"a node with one", guarded.admin, false, true}, {"a locator with one", open.admin, true, true}}
	for _, l := range all {
		for path, ofLocator := range map[string]bool{"/metrics": false, "/debug/pprof/": false, "/admin/v1/state": true} {
			if ofLocator && !l.locator {
				if status, _ := adminCall(t, "GET", "http://"+l.addr+path, "", bearer...); status != 404 {
					t.Errorf("%s has %s: %d", l.name, path, status)
				}
				continue
			}
			without := 200
			if l.guards {
				without = 401
			}
			for i, h := range [][]string{nil, service, bearer} {
				want := without
				if i == 2 {
					want = 200
				}
				if status, b := adminCall(t, "GET", "http://"+l.addr+path, "", h...); status != want {
					t.Errorf("%s, %s with %q: %d, want %d: %.200s", l.name, path, h, status, want, b)
				}
			}
		}
		for _, path := range []string{"/healthz", "/readyz"} {
			if status, _ := adminCall(t, "GET", "http://"+l.addr+path, ""); status != 200 && (path != "/readyz" || status != 503) {
				t.Errorf("%s, %s: %d", l.name, path, status)
			}
		}
	}
	_, port, _ := strings.Cut(closed.admin[strings.LastIndex(closed.admin, "]")+1:], ":")
	for path, want := range map[string]int{"/": 403, "/admin/v1/state": 403, "/admin/v1/events": 403, "/debug/pprof/": 403, "/metrics": 403, "/healthz": 200} {
		status, b := adminCall(t, "GET", "http://127.0.0.1:"+port+path, "", bearer...)
		if status != want || want == 403 && !strings.Contains(b, "DIALRING_ADMIN_KEY") {
			t.Errorf("beyond loopback without a key, %s: %d %s", path, status, b)
		}
	}
	closed.event(t, "admin_without_key")
	if strings.Contains(open.text()+free.text(), "admin_without_key") {
		t.Error("who listens on loopback is warned")
	}
	if strings.Contains(open.text(), key) || strings.Contains(closed.text(), key) {
		t.Error("a log has the admin key")
	}
}

// What happened to a user is told by the node that has it and by those that had it: a
// session that connects, is told to move, arrives, and is kicked.
func TestUserHistory(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	startNode(t, "a", l.nats)
	l.waitMembers(t, "a")
	user, after := "a", ring.Of(equal("a", "b")) // it will move
	for o, _ := after.Owner(user); o.ID != "b"; o, _ = after.Owner(user) {
		user += "a"
	}
	h := pickUp(t, user, "web", l)
	eventually(t, "the client is connected", h.connected)
	startNode(t, "b", l.nats)
	l.waitMembers(t, "a", "b")
	type shown struct {
		Node      string
		NextOwner string `json:"next_owner"`
		Events    []peer.Event
		Silent    []string
		Now       time.Time
	}
	look := func() (s shown) {
		t.Helper()
		status, b := adminCall(t, "GET", "http://"+l.admin+"/admin/v1/users/="+url.PathEscape(user), "")
		if err := json.Unmarshal([]byte(b), &s); status != 200 || err != nil {
			t.Fatalf("%d %s", status, b)
		}
		return s
	}
	kinds := func(s shown) (out []string) {
		for _, e := range s.Events {
			out = append(out, e.Kind+"@"+e.Node)
			if e.Device != "web" || e.Session == "" || e.RemoteAddr == "" || e.Time.IsZero() {
				t.Errorf("an event without its session: %+v", e)
			}
			if (e.Kind == peer.EventTold || e.Kind == peer.EventMoved) && e.To != "b" {
				t.Errorf("it moved to %q", e.To)
			}
		}
		return out
	}
	var got shown
	eventually(t, "the session has moved", func() bool {
		got = look()
		return got.Node == "b" && slices.Contains(kinds(got), "moved@a") && len(got.Events) > 3
	})
	if k := kinds(got); !slices.Equal(k, []string{"connected@a", "told@a", "arrived@b", "moved@a"}) {
		t.Errorf("the events are %q", k)
	}
	if got.NextOwner != "a" || len(got.Silent) != 0 || got.Now.IsZero() {
		t.Errorf("the look-up says %+v", got)
	}
	status, b := adminCall(t, "DELETE", "http://"+l.admin+"/admin/v1/users/="+user+"/sessions?device=web", "", "Content-Type", "application/json")
	if status != 200 || b != `{"closed":1}` {
		t.Fatalf("kick: %d %s", status, b)
	}
	h.stopped(t, 4002)
	if k := kinds(look()); k[len(k)-1] != "kicked@b" {
		t.Errorf("after the kick the events are %q", k)
	}
	adminCall(t, "POST", "http://"+l.admin+"/admin/v1/users/="+user+"/push?durable=false", "1", "Content-Type", "application/json")
	adminCall(t, "DELETE", "http://"+l.admin+"/admin/v1/users/="+user+"/sessions?revoke=true", "", "Content-Type", "application/json")
	adminCall(t, "POST", "http://"+l.admin+"/admin/v1/nodes/nobody/drain", "{}", "Content-Type", "application/json")
	l.kick(t, user, "")
	audit := func() (out []string) {
		for line := range strings.Lines(l.text()) {
			var m map[string]any
			if json.Unmarshal([]byte(line), &m) == nil && m["event"] == "audit" && m["remote"] != "" {
				out = append(out, fmt.Sprintf("%v %v by %v: %v", m["act"], m["target"], m["who"], m["result"]))
			}
		}
		return out
	}
	want := []string{"kick " + user + " by admin:loopback: ok", "push " + user + " by admin:loopback: ok", "revoke " + user + " by admin:loopback: ok",
		"drain nobody by admin:loopback: not_found", "kick " + user + " by api_key:env-1: ok"}
	eventually(t, "the audit has all of it", func() bool { return len(audit()) >= len(want) })
	if a := audit(); !slices.Equal(a, want) {
		t.Errorf("the audit is %q, want %q", a, want)
	}
	for _, c := range []struct {
		method, path string
		want         int
	}{
		{"GET", "users/" + user, 400}, // without the =
		{"POST", "users/=" + user, 400},
		{"DELETE", "users/=" + user, 400},
		{"DELETE", "users/=" + user + "/sessions?nonsense=1", 400},
		{"POST", "users/=" + user + "/push?durable=perhaps", 400},
		{"POST", "nodes/nobody/drain", 404},
		{"POST", "plan", 400},
		{"PUT", "state", 405},
		{"GET", "nothing", 404},
	} {
		if status, b := adminCall(t, c.method, "http://"+l.admin+"/admin/v1/"+c.path, "{}", "Content-Type", "application/json"); status != c.want {
			t.Errorf("%s %s: %d %s, want %d", c.method, c.path, status, b, c.want)
		}
	}
	const refused = " by admin:loopback: invalid_request"
	want = append(want, "push /admin/v1/users/="+user+refused, "kick /admin/v1/users/="+user+refused, "kick "+user+refused, "push "+user+refused, "drain nobody by admin:loopback: not_found")
	eventually(t, "the audit has what was refused", func() bool { return len(audit()) >= len(want) })
	if a := audit(); !slices.Equal(a, want) {
		t.Errorf("the audit is %q, want %q", a, want)
	}
}
