package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"
)

// A NATS that was never there, or that refuses a process, is in its log with the reason, and
// without the password.
func TestNATSNeverReached(t *testing.T) {
	t.Parallel()
	l := startLocator(t, "DIALRING_NATS_TOKEN=right")
	for what, url := range map[string]string{"nobody is there": fmt.Sprintf("nats://127.0.0.1:%d", freePort(t)), "it refuses": strings.Replace(l.nats, "nats://", "nats://canary-password@", 1)} {
		n := startNode(t, "ws-1", url)
		m := startLocator(t, "DIALRING_NATS_URL="+url)
		for _, p := range []*process{n.process, m.process} {
			want := map[string]string{"nobody is there": "connection refused", "it refuses": "Authorization Violation"}[what]
			eventually(t, p.name+" says why", func() bool {
				for line := range strings.Lines(p.text()) {
					if strings.Contains(line, `"nats_down"`) && strings.Contains(line, want) {
						return true
					}
				}
				return false
			})
			if strings.Contains(p.text(), "canary-password") {
				t.Errorf("%s: the log of %s shows the password", what, p.name)
			}
			p.kill()
		}
	}
}

// While the store is away nobody claims that a user has no messages.
func TestHeadUnknown(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	port := freePort(t)
	stop := startNATS(t, port, dir)
	nats := fmt.Sprintf("nats://127.0.0.1:%d", port)
	l := startLocator(t, "DIALRING_NATS_URL="+nats)
	n := startNode(t, "ws-1", nats, "DIALRING_RESTART_GRACE=1m")
	l.waitMembers(t, "ws-1")
	l.keep(t, "carol", "1")
	if u := l.getUser(t, "carol"); u.Head != 1 || u.HeadUnknown {
		t.Errorf("head %d, unknown %v", u.Head, u.HeadUnknown)
	}
	if err := stop.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stop.cmd.Process.Signal(syscall.SIGCONT) }()
	eventually(t, "the node knows that the store is away", func() bool { return n.metric(t, "dialring_store_up") == 0 })
	for _, user := range []string{"dave", "carol"} {
		status, b := call(t, "GET", "http://"+l.addr+"/v1/users/"+user, "")
		var u struct {
			HeadUnknown bool `json:"head_unknown"`
		}
		if err := json.Unmarshal(b, &u); status != 200 || err != nil || !u.HeadUnknown {
			t.Errorf("%s while the store is away: %d %s", user, status, b)
		}
	}
}

// Pushes that are refused are counted by their kind and code.
func TestRefusedPushesAreCounted(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	startNode(t, "ws-1", l.nats)
	l.waitMembers(t, "ws-1")
	count := func(kind, result string) float64 {
		return scrapeValue(t, l.admin, `dialring_pushes_total{kind="`+kind+`",result="`+result+`"}`)
	}
	for path, body := range map[string]string{"/v1/push/a?ttl_ms=x": "1", "/v1/push/a": "{", "/v1/push/%00": "1", "/v1/push": `{"users":["","a"],"data":1}`} {
		call(t, "POST", "http://"+l.addr+path, body)
	}
	if n := count("stored", "invalid_request"); n != 4 {
		t.Errorf("%v refused stored pushes are counted, there were 4", n)
	}
	call(t, "POST", "http://"+l.addr+"/v1/push?durable=false", `{"users":["","a"],"data":1}`)
	if n := count("ephemeral", "invalid_request"); n != 1 {
		t.Errorf("%v refused ephemeral pushes are counted, there was 1", n)
	}
	if n := count("stored", "ok"); n != 1 {
		t.Errorf("%v stored pushes are counted, there was 1", n)
	}
}

// A process that NATS refused again and again comes in when NATS takes its token.
func TestNATSRefusedForAWhile(t *testing.T) {
	t.Parallel()
	addr, dir := fmt.Sprintf("127.0.0.1:%d", freePort(t)), t.TempDir()
	locator := func(token string) *locatorProc {
		return startLocator(t, "DIALRING_NATS_LISTEN="+addr, "DIALRING_DATA_DIR="+dir, "DIALRING_NATS_TOKEN="+token)
	}
	old := locator("old")
	startNode(t, "ws-1", "nats://"+addr, "DIALRING_NATS_TOKEN=new")
	eventually(t, "it was refused some times", func() bool { return strings.Count(old.text(), "authentication error") >= 5 })
	old.kill()
	locator("new").waitMembers(t, "ws-1")
}
