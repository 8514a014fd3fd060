package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/dialring/dialring/client"
)

func streamPusher(t *testing.T, l *locatorProc) *client.Pusher {
	t.Helper()
	p, err := client.NewPusher(client.PusherConfig{Locators: []string{"http://" + l.addr}, APIKey: "dev"})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Thousands of messages on one stream, while a node is killed: a result for each, and
// what has one as stored is there, in order, once.
func TestPushStream(t *testing.T) {
	t.Parallel()
	l, nodes := threeNodes(t)
	users := usersOf(t, l, nodes)
	s, err := streamPusher(t, l).Stream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const each = 1000
	sent := make(chan error, 1)
	half := make(chan struct{})
	go func() {
		for i := range each {
			for _, u := range users {
				if err := s.Push(client.Item{User: u, Data: i, Key: fmt.Sprint(u, " ", i)}); err != nil {
					sent <- err
					return
				}
			}
			if i == each/2 {
				close(half)
			}
		}
		sent <- s.Close()
	}()
	go func() {
		<-half
		nodes[0].kill()
	}()
	stored := map[string]bool{}
	n := 0
	for r := range s.Results() {
		n++
		if r.Err == nil {
			if !r.Stored || r.Seq == 0 || r.Key == "" {
				t.Fatalf("a result is %+v", r)
			}
			stored[r.Key] = true
		}
	}
	if err := s.Err(); err != nil || n != each*3 || len(s.Unanswered()) != 0 {
		t.Fatalf("%d results, %d without one: %v", n, len(s.Unanswered()), err)
	}
	if err := await(t, "all are sent", sent); err != nil {
		t.Fatal(err)
	}
	for _, u := range users {
		b := dialSince(t, l, u, "reader", "0")
		next, seq := 0, uint64(0)
		for {
			more := false // is any stored one still to come?
			for i := next; i < each; i++ {
				more = more || stored[fmt.Sprint(u, " ", i)]
			}
			if !more {
				break
			}
			var m struct {
				Type string
				Seq  uint64
				Data int
			}
			if err := json.Unmarshal([]byte(b.text(t)), &m); err != nil || m.Type == "message" && (m.Seq != seq+1) {
				t.Fatalf("after %d came %+v, %v", seq, m, err)
			}
			if m.Type != "message" {
				continue
			}
			seq = m.Seq
			for ; next < m.Data; next++ {
				if stored[fmt.Sprint(u, " ", next)] {
					t.Fatalf("%s misses %d, which was stored", u, next)
				}
			}
			if m.Data < next {
				t.Fatalf("%s got %d after %d", u, m.Data, next-1)
			}
			next = m.Data + 1
		}
	}
}

// What is wrong with a line is said of that line, and the others go on.
func TestPushStreamLines(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	startNode(t, "ws-1", l.nats)
	l.waitMembers(t, "ws-1")
	in, out := io.Pipe()
	r, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+l.addr+"/v1/push?durable=false", in)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer dev")
	r.Header.Set("Content-Type", "application/x-ndjson; charset=utf-8")
	resp, err := http.DefaultClient.Do(r) // answered before anything was sent
	if err != nil || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/x-ndjson" {
		t.Fatalf("%v, %v", resp, err)
	}
	defer resp.Body.Close()
	results := bufio.NewReader(resp.Body)
	for i, c := range []struct{ line, want string }{
		{`{"user":"a","data":1}`, `"delivered":0`},
		{"", ""},
		{`{"user":"a","data":1,"ref":"x"}`, `"ref":"x"`},
		{`{"user":"a"}`, "invalid_request"},
		{`{"data":1}`, "invalid_request"},
		{`nonsense`, "invalid_request"},
		{`{"user":"a\ud800","data":1}`, "invalid_request"},
		{`{"user":"a","data":"` + strings.Repeat("x", 65536) + `"}`, "too_large"},
		{`{"user":"a","data":"` + strings.Repeat("x", 300_000) + `"}`, "too_large"},
		{`{"user":"a","data":1,"ref":{}}`, "invalid_request"},
		{`{"user":"a","data":2}`, `"delivered":0`},
	} {
		if _, err := io.WriteString(out, c.line+"\n"); err != nil {
			t.Fatal(err)
		}
		if c.want == "" {
			continue
		}
		line, err := results.ReadString('\n')
		var f struct{ Line int }
		if err != nil || json.Unmarshal([]byte(line), &f) != nil || f.Line == 0 || !strings.Contains(line, c.want) {
			t.Errorf("line %d was answered %s, %v", i, line, err)
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(results); err != nil || len(b) > 0 {
		t.Errorf("behind the last result: %q, %v", b, err)
	}
	for path, want := range map[string]int{"?wait=ack": 400, "?nonsense=1": 400} {
		r, _ := http.NewRequest("POST", "http://"+l.addr+"/v1/push"+path, strings.NewReader(""))
		r.Header.Set("Authorization", "Bearer dev")
		r.Header.Set("Content-Type", "application/x-ndjson")
		resp, err := http.DefaultClient.Do(r)
		if err != nil || resp.StatusCode != want {
			t.Errorf("%s: %v, %v", path, resp, err)
		}
		resp.Body.Close()
	}
}

// A locator that stops says up to where it has read; what it has read has results.
func TestPushStreamAtTheEndOfALocator(t *testing.T) {
	t.Parallel()
	l1 := startLocator(t)
	l2 := startLocator(t, "DIALRING_NATS_URL="+l1.nats)
	startNode(t, "ws-1", l1.nats)
	l2.waitMembers(t, "ws-1")
	s, err := streamPusher(t, l2).Stream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		if err := s.Push(client.Item{User: "alice", Data: i}); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		if r := await(t, "a result", s.Results()); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	if code := l2.term(t); code != 0 {
		t.Errorf("the locator ended with %d", code)
	}
	for r := range s.Results() {
		t.Errorf("one more result: %+v", r)
	}
	if s.Err() == nil || !strings.Contains(s.Err().Error(), "draining") {
		t.Errorf("the stream ended with %v", s.Err())
	}
	if err := s.Push(client.Item{User: "alice", Data: 1}); err == nil {
		t.Error("a push on a stream that has ended")
	}
}

// A service that does not take its results is not read any more; it loses nothing.
func TestPushStreamBackPressure(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	startNode(t, "ws-1", l.nats)
	l.waitMembers(t, "ws-1")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s, err := streamPusher(t, l).Stream(ctx, client.Ephemeral())
	if err != nil {
		t.Fatal(err)
	}
	const n = 30_000
	sent := make(chan int, n)
	go func() {
		defer close(sent)
		for i := range n {
			if s.Push(client.Item{User: "alice", Data: strings.Repeat("x", 1000)}) != nil {
				return
			}
			sent <- i
		}
		_ = s.Close()
	}()
	got := 0
	for r := range s.Results() {
		if got++; r.Err != nil {
			t.Fatalf("%+v", r)
		}
	}
	if s.Err() != nil || got != n {
		t.Errorf("%d results: %v", got, s.Err())
	}
}
