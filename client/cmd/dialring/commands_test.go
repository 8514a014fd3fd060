package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
	"github.com/dialring/dialring/locator"
)

// keepNothing leaves no connection behind.
func keepNothing() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DisableKeepAlives = true
	return t
}

// TestCommands is of the commands that leave the cluster as it is.
func TestCommands(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, locator.Config{})
	for name, test := range map[string]func(*testing.T, *cluster){
		"ring": testRing, "plan": testPlan, "where and kick": testWhere, "push": testPush, "push forms": testPushForms, "push to several": testPushSeveral,
		"push to a group": testPushGroup, "push and wait": testPushWait, "listen": testListen, "listen as JSON": testListenJSON, "listen again": testListenAgain, "send": testSend,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, c)
		})
	}
}

func testRing(t *testing.T, c *cluster) {
	var r wire.RingResponse
	decode(t, c.ok(t, "ring"), &r)
	if r.Cluster != "dialring" || len(r.Nodes) != 3 || r.Nodes[0].ID != "ws-1" || r.Nodes[0].State != wire.StateActive || r.Nodes[0].Share < 0.2 || r.Hash == "" || r.Handoffs == nil {
		t.Errorf("%+v", r)
	}
	human := c.ok(t, "ring", "-o", "table")
	lines := strings.Split(human, "\n")
	if len(lines) != 6 || !strings.HasPrefix(lines[0], "cluster dialring, ring ") || !strings.HasPrefix(lines[1], "NODE  STATE   SHARE ") || !strings.HasPrefix(lines[2], "ws-1  active  3") {
		t.Errorf("%s", human)
	}
	// As the API answers it, but for what changes all the time.
	var ours, api map[string]any
	decode(t, c.ok(t, "ring"), &ours)
	decode(t, get(t, c.url+"/v1/ring"), &api)
	for _, m := range []map[string]any{ours, api} {
		for _, n := range m["nodes"].([]any) {
			delete(n.(map[string]any), "last_seen_ms")
			delete(n.(map[string]any), "sessions")
			delete(n.(map[string]any), "pushes_per_second")
		}
	}
	a, _ := json.Marshal(ours)
	b, _ := json.Marshal(api)
	if string(a) != string(b) {
		t.Errorf("the command says\n%s\nthe API\n%s", a, b)
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer dev")
	resp, err := (&http.Client{Transport: keepNothing()}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var b strings.Builder
	if _, err := bufio.NewReader(resp.Body).WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func testPlan(t *testing.T, c *cluster) {
	var p wire.PlanResponse
	decode(t, c.ok(t, "plan", "--add", "ws-4"), &p)
	if len(p.Moves) != 3 || p.Share < 0.2 || p.Share > 0.3 || p.Moves[0].From != "ws-1" || p.Moves[0].To != "ws-4" {
		t.Errorf("%+v", p)
	}
	swap := c.ok(t, "plan", "--add", "ws-4:2", "--remove", "ws-1", "-o", "table")
	if lines := strings.Split(swap, "\n"); len(lines) < 7 || !strings.HasPrefix(lines[1], "FROM  TO    SHARE  SESSIONS") || !strings.Contains(swap, "\nws-1  ws-4  ") {
		t.Errorf("%s", swap)
	}
	decode(t, c.ok(t, "plan", "--add", "ws-1"), &p)
	if p.Moves == nil || len(p.Moves) != 0 {
		t.Errorf("nothing changes: %+v", p)
	}
	c.do(t, "plan", "--remove", "ws-9").want(t, exitFailed, `no node "ws-9" is in the ring`)
}

func testWhere(t *testing.T, c *cluster) {
	const user = "walter/1"
	var u wire.UserResponse
	decode(t, c.ok(t, "where", user), &u)
	if u.User != user || u.Online || u.Sessions == nil || len(u.Sessions) != 0 || u.Node == "" {
		t.Errorf("%+v", u)
	}
	one, two := c.begin(t, "listen", "--user", user, "--device", "one"), c.begin(t, "listen", "--user", user, "--device", "two")
	one.says("connected to ")
	two.says("connected to ")
	c.ok(t, "push", user, "hi")
	eventually(t, "both have acknowledged", func() bool {
		decode(t, c.ok(t, "where", user), &u)
		return len(u.Sessions) == 2 && u.Sessions[0].AckedSeq == 1 && u.Sessions[1].AckedSeq == 1
	})
	if u.Head != 1 || !u.Online || u.Epoch == 0 {
		t.Errorf("%+v", u)
	}
	golden(t, "where", sortedLines(steady(c.ok(t, "where", user, "-o", "table")), 2))

	if out := c.ok(t, "kick", user, "--device", "one"); out != "{\"closed\":1}\n" {
		t.Errorf("kick: %s", out)
	}
	one.ends(exitFailed)
	one.says("the server ended the session for good: 4002")
	if out := c.ok(t, "kick", user, "--session", "another", "-o", "table"); out != "0 sessions of walter/1 ended\n" {
		t.Errorf("kick: %s", out)
	}
	if out := c.ok(t, "kick", user, "--revoke", "-o", "table"); out != "1 session of walter/1 ended\n" {
		t.Errorf("kick: %s", out)
	}
	two.ends(exitFailed)
	golden(t, "where-offline", steady(c.ok(t, "where", "nobody at all", "-o", "table")))
}

// sortedLines sorts the lines behind the first n, which come in no order.
func sortedLines(text string, n int) string {
	lines := strings.SplitAfter(text, "\n")
	if len(lines) == n+3 && lines[n] > lines[n+1] {
		lines[n], lines[n+1] = lines[n+1], lines[n]
	}
	return strings.Join(lines, "")
}

func testPush(t *testing.T, c *cluster) {
	var r wire.PushResult
	decode(t, c.ok(t, "push", "paul", "hi", "--key", "k"), &r)
	if r.Seq != 1 || !r.Stored || r.Duplicate || r.ID == "" || r.Node == "" || r.Epoch == 0 {
		t.Errorf("%+v", r)
	}
	decode(t, c.ok(t, "push", "paul", "hi", "--key", "k"), &r)
	if r.Seq != 1 || !r.Duplicate {
		t.Errorf("again: %+v", r)
	}
	c.do(t, "push", "paul", "ho", "--key", "k").want(t, exitFailed, "key_reused")
	human := c.ok(t, "push", "paul", "hi", "--key", "k", "-o", "table") + c.ok(t, "push", "paul", "2", "-o", "table") + c.ok(t, "push", "paul", "3", "--ephemeral", "-o", "table")
	golden(t, "push", strings.ReplaceAll(human, r.Node, "<NODE>"))
	var e wire.PushResult
	decode(t, c.ok(t, "push", "paul", "hi", "--device", "phone"), &e)
	if e.Stored || e.Seq != 0 {
		t.Errorf("to a device: %+v", e)
	}
	c.do(t, "push", "paul", strings.Repeat("x", 70_000)).want(t, exitFailed, "too_large")
	c.ok(t, "push", "paul", "gone soon", "--ttl", "1h")
}

// testPushForms: what is given arrives as the help says.
func testPushForms(t *testing.T, c *cluster) {
	for i, f := range []struct {
		stdin string
		args  []string
		want  string // of the frame that arrives
		says  string
	}{
		{"", []string{`{"b":1.0,"a":[]}`}, `"data":{"b":1.0,"a":[]}`, ""},
		{"", []string{"12"}, `"data":12`, ""},
		{"", []string{" true "}, `"data":true`, ""},
		{"", []string{`"hi"`}, `"data":"hi"`, ""},
		{"", []string{"hello <b>"}, `"data":"hello <b>"`, ""},
		{"", []string{""}, `"data":""`, ""},
		{"", []string{"12", "--text"}, `"data":"12"`, ""},
		{"", []string{"{oops"}, `"data":"{oops"`, "begins like JSON"},
		{"", []string{"{oops", "--text"}, `"data":"{oops"`, ""},
		{"", []string{"hello", "--raw"}, `"data_b64":"aGVsbG8="`, ""},
		{"", []string{"{}", "--raw"}, `"data_b64":"e30="`, ""},
		{"", []string{"{}", "--json"}, `"data":{}`, ""},
		{"hello\n", nil, `"data":"hello"`, ""},
		{"two\nlines\n\n", []string{"-"}, `"data":"two\nlines\n"`, ""},
		{"{\"a\":\n1}\n", nil, `"data":{"a":1}`, ""},
		{"\xff\n", []string{"--raw"}, `"data_b64":"/wo="`, ""},
		{"hello\n", []string{"--data", "-"}, `"data":"hello"`, ""},
		{"", []string{"--", "--text"}, `"data":"--text"`, ""},
	} {
		o := command(t, f.stdin, c.env, append([]string{"push", "fay"}, f.args...)...)
		o.want(t, exitDone, f.says)
		if f.says == "" && o.errors != "" {
			t.Errorf("%q says %q", f.args, o.errors)
		}
		var r wire.PushResult
		if decode(t, o.out, &r); r.Seq != uint64(i+1) {
			t.Fatalf("%q is message %d, want %d", f.args, r.Seq, i+1)
		}
		lines := strings.Split(c.ok(t, "listen", "--user", "fay", "--since", "0", "--count", itoa(i+1)), "\n")
		if got := lines[i]; !strings.HasSuffix(got, ","+f.want+"}") {
			t.Errorf("%q, stdin %q: %s, want %s", f.args, f.stdin, got, f.want)
		}
	}
	command(t, "\xff", c.env, "push", "fay").want(t, exitUsage, "not UTF-8")
}

func itoa(n int) string { b, _ := json.Marshal(n); return string(b) }

func testPushSeveral(t *testing.T, c *cluster) {
	var many struct{ Results []wire.PushResult }
	decode(t, c.ok(t, "push", "sara", "sam", "--data", "hi"), &many)
	if len(many.Results) != 2 || many.Results[0].User != "sara" || many.Results[1].User != "sam" || many.Results[1].Seq != 1 {
		t.Errorf("%+v", many)
	}
	file := filepath.Join(t.TempDir(), "users")
	if err := os.WriteFile(file, []byte("sara\r\n\nsam\nsid with a space"), 0o600); err != nil {
		t.Fatal(err)
	}
	decode(t, c.ok(t, "push", "--users", file, "hi", "--key", "once"), &many)
	if len(many.Results) != 3 || many.Results[2].User != "sid with a space" || many.Results[0].Seq != 2 {
		t.Errorf("%+v", many)
	}
	o := command(t, "sara\nsam\n", c.env, "push", "--users", "-", "hi", "--key", "once", "-o", "table")
	o.want(t, exitDone, "")
	var owners []string
	for _, r := range many.Results[:2] {
		owners = append(owners, r.Node, "<NODE>")
	}
	golden(t, "push-several", strings.NewReplacer(owners...).Replace(o.out))
	o = command(t, "from stdin\n", c.env, "push", "--users", file, "--ephemeral")
	if o.want(t, exitDone, ""); strings.Contains(o.out, `"stored":true`) {
		t.Errorf("%s", o.out)
	}
}

func testPushGroup(t *testing.T, c *cluster) {
	if err := c.pusher.ChangeGroup(t.Context(), "team", []string{"gus", "gil"}, nil); err != nil {
		t.Fatal(err)
	}
	if out := c.ok(t, "push", "--group", "team", "hi"); out != `{"group":"team","members":2,"stored":2,"delivered":0,"failed_count":0,"failed":[]}`+"\n" {
		t.Errorf("%s", out)
	}
	if out := c.ok(t, "push", "--group", "team", "--data", "hi", "-o", "table"); out != "to 2 members of team: stored for 2, written to 0 sessions, failed for 0\n" {
		t.Errorf("%s", out)
	}
	o := command(t, "\xff", c.env, "push", "--group", "team", "--raw")
	o.want(t, exitDone, "")
}

func testPushWait(t *testing.T, c *cluster) {
	c.do(t, "push", "wendy", "hi", "--wait-ack", "1ms").want(t, exitFailed, "no session acknowledged the message within 1ms; it is stored")
	c.do(t, "push", "wendy", "will", "--data", "hi", "--wait-ack", "1ms").want(t, exitFailed, "no session of 2 users acknowledged the message within 1ms; it is stored")
	l := c.begin(t, "listen", "--user", "wendy")
	l.says("connected to ")
	var r wire.PushResult
	if decode(t, c.ok(t, "push", "wendy", "hi", "--wait-ack", "1m"), &r); r.Acked != 1 {
		t.Errorf("%+v", r)
	}
	if out := c.ok(t, "push", "wendy", "hi", "--wait-ack", "1m", "-o", "table"); !strings.HasSuffix(out, ", acknowledged by 1\n") {
		t.Errorf("%s", out)
	}
	l.cancel()
	l.ends(exitDone)
}

func testListen(t *testing.T, c *cluster) {
	l := c.begin(t, "listen", "--user", "lisa", "--count", "4", "-o", "table")
	l.says("connected to ")
	c.ok(t, "push", "lisa", `{"text":"hi"}`)
	c.ok(t, "push", "lisa", "for now", "--ephemeral")
	c.ok(t, "push", "lisa", "\x1b[31mred\u009b\u202e", "--raw")
	c.ok(t, "push", "lisa", "\xff", "--raw")
	golden(t, "listen", steady(l.ends(exitDone)))
}

func testListenJSON(t *testing.T, c *cluster) {
	l := c.begin(t, "listen", "--user", "joan", "--count", "2")
	l.says("connected to ")
	c.ok(t, "push", "joan", `{"html":"<b>"}`)
	c.ok(t, "push", "joan", "bytes", "--raw")
	lines := strings.Split(l.ends(exitDone), "\n")
	var m wire.Message
	if decode(t, lines[0], &m); m.Type != "message" || m.Seq != 1 || m.Cursor == "" || m.ID == "" || m.Time.IsZero() || string(m.Data) != `{"html":"<b>"}` {
		t.Errorf("%s", lines[0])
	}
	var b wire.Message
	if decode(t, lines[1], &b); string(b.DataB64) != "bytes" || b.Data != nil {
		t.Errorf("%s", lines[1])
	}
	if len(lines) != 3 || lines[2] != "" {
		t.Errorf("%q", lines)
	}
	// The cursor is where another device goes on.
	out := c.ok(t, "listen", "--user", "joan", "--since", m.Cursor, "--count", "1")
	if decode(t, out, &b); b.Seq != 2 {
		t.Errorf("%s", out)
	}
}

// testListenAgain: a device that takes one message at a time gets all of them, in order.
// Its node writes down what it has acknowledged a moment later, which nothing tells: until
// then it may get the last one again, or, before its first position, nothing.
func testListenAgain(t *testing.T, c *cluster) {
	first := c.begin(t, "listen", "--user", "ada", "--device", "d", "--count", "1")
	first.says("connected to ")
	for i := range 5 {
		c.ok(t, "push", "ada", itoa(i+1))
	}
	last := seqOf(t, first.ends(exitDone))
	if last != 1 {
		t.Errorf("message %d came first", last)
	}
	eventually(t, "all have come", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		var out, errs bytes.Buffer
		code := run(ctx, []string{"listen", "--user", "ada", "--device", "d", "--count", "1"}, getenv(c.env), strings.NewReader(""), &out, &errs)
		if code != exitDone {
			t.Fatalf("ended with %d: %s", code, errs.String())
		}
		if out.Len() > 0 {
			seq := seqOf(t, out.String())
			if seq != last && seq != last+1 {
				t.Fatalf("message %d came after %d", seq, last)
			}
			last = seq
		}
		return last == 5
	})
}

func seqOf(t *testing.T, line string) uint64 {
	t.Helper()
	var m wire.Message
	decode(t, line, &m)
	return m.Seq
}

func testSend(t *testing.T, c *cluster) {
	bob := c.begin(t, "listen", "--user", "bert", "--count", "2", "-o", "table")
	bob.says("connected to ")
	ann := c.begin(t, "listen", "--user", "ann", "--send-to", "bert")
	if _, err := ann.stdin.Write([]byte("hi bert\n\n{\"a\":1}")); err != nil {
		t.Fatal(err)
	}
	ann.stdin.Close()
	golden(t, "send", steady(bob.ends(exitDone)))
	ann.says("sent to bert: stored as #2, written to 1 session\n")
	ann.cancel()
	ann.ends(exitDone)
}
