package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

func (l *locatorProc) api(t *testing.T, method, path, body string, want int, out any) {
	t.Helper()
	status, b := call(t, method, "http://"+l.addr+path, body)
	if status != want {
		t.Fatalf("%s %s: %d %s", method, path, status, b)
	}
	if out != nil {
		if err := json.Unmarshal(b, out); err != nil {
			t.Fatalf("%s %s: %s: %v", method, path, b, err)
		}
	}
}

// Members come and go; a push reaches those who are members when it is made, each as a
// message of its own, on all nodes.
func TestGroups(t *testing.T) {
	t.Parallel()
	l, nodes := threeNodes(t)
	users := usersOf(t, l, nodes)
	var ears []*ear
	for _, u := range users {
		ears = append(ears, dialEar(t, l, u, "d"))
	}
	const group = "/v1/groups/team%20a%2Fb"
	var g wire.GroupResponse
	if l.api(t, "GET", group, "", 200, &g); g.Count != 0 || g.Group != "team a/b" {
		t.Errorf("a group that nobody made: %+v", g)
	}
	for _, u := range users {
		l.api(t, "PUT", group+"/members/"+u, "", 204, nil)
	}
	l.api(t, "PUT", group+"/members/"+users[0], "", 204, nil) // once more
	want := slices.Sorted(slices.Values(users))
	if l.api(t, "GET", group+"/members", "", 200, &g); !slices.Equal(g.Members, want) || g.Count != 3 {
		t.Errorf("the members are %+v", g)
	}
	push := func(body, query string, members int) wire.GroupPushResult {
		t.Helper()
		var r wire.GroupPushResult
		l.api(t, "POST", "/v1/push?group=team%20a%2Fb"+query, body, 200, &r)
		if r.Members != members || r.FailedCount != 0 || r.Failed == nil {
			t.Errorf("the push was answered %+v", r)
		}
		return r
	}
	const odd = `{"a" : "<\u0041>", "n":1.0}` // as it is
	if r := push(odd, "", 3); r.Stored != 3 || r.Delivered != 3 {
		t.Errorf("%+v", r)
	}
	for _, e := range ears {
		e.expect(t, odd)
	}
	l.api(t, "DELETE", group+"/members/"+users[1], "", 204, nil)
	if r := push(`2`, "&durable=false", 2); r.Stored != 0 || r.Delivered != 2 {
		t.Errorf("%+v", r)
	}
	l.api(t, "PUT", group+"/members/"+users[1], "", 204, nil)
	push(`3`, "", 3)
	for i, e := range ears {
		if i != 1 {
			e.expect(t, `2`)
		}
		e.expect(t, `3`)
	}
	// The owner of the group dies; what was changed before is known to the next one.
	// (Which node owns it does not matter: each is killed in turn.)
	l.api(t, "POST", group+"/members", `{"add":["x1","x2","x3"],"remove":["`+users[1]+`"]}`, 204, nil)
	nodes[0].kill()
	l.waitMembers(t, "ws-2", "ws-3")
	push(`4`, "", 5)
	l.api(t, "DELETE", group+"/members/x3", "", 204, nil)
	nodes[1].kill()
	l.waitMembers(t, "ws-3")
	push(`5`, "", 4)
	if l.api(t, "GET", group+"/members?limit=2", "", 200, &g); len(g.Members) != 2 || g.Next != g.Members[1] || g.Count != 4 {
		t.Errorf("the first page is %+v", g)
	}
	for path, status := range map[string]int{"/v1/groups/": 400, "/v1/groups/a/b": 404, "/v1/groups/a/members/b/c": 404, "/v1/groups/%00": 400, "/v1/groups/a/members?limit=0": 400,
		"/v1/groups/a/members?x=1": 400, "/v1/groups/" + strings.Repeat("g", 129): 400} {
		l.api(t, "GET", path, "", status, nil)
	}
	for _, body := range []string{`{}`, `{"add":["a"],"remove":["a"]}`, `{"add":[""]}`, `{"add":["\u0000"]}`, `{"add":["\ud800"]}`} {
		l.api(t, "POST", group+"/members", body, 400, nil)
	}
	l.api(t, "POST", "/v1/push/alice?group=x", `1`, 400, nil)
	l.api(t, "POST", "/v1/push?group=x&wait=ack", `1`, 400, nil)
}

// A member is moved while the group is pushed to: nothing is lost, and nothing comes
// twice.
func TestGroupWithMovingMember(t *testing.T) {
	t.Parallel()
	l, nodes := threeNodes(t)
	users := usersOf(t, l, nodes)
	var ends []*talker
	for _, u := range users {
		l.api(t, "PUT", "/v1/groups/g/members/"+u, "", 204, nil)
		ends = append(ends, talk(t, u, nil, l))
	}
	const n = 200
	done := make(chan string, 1)
	started := make(chan struct{})
	go func() {
		for i := range n {
			for end := time.Now().Add(patience); ; {
				a := l.post("/v1/push?group=g", "application/json", fmt.Sprint(i), fmt.Sprint("k", i))
				var r wire.GroupPushResult
				if a.status == 200 && json.Unmarshal(a.body, &r) == nil && r.FailedCount == 0 && r.Members == 3 {
					break
				}
				if a.status != 503 && r.FailedCount == 0 || time.Now().After(end) {
					done <- fmt.Sprintf("push %d: %d %s", i, a.status, a.body)
					return
				}
			}
			if i == 20 {
				close(started)
			}
		}
		done <- ""
	}()
	<-started
	l.api(t, "POST", "/v1/nodes/ws-1/drain", "", 202, nil)
	if why := await(t, "all are pushed", done); why != "" {
		t.Fatal(why)
	}
	for k, e := range ends {
		for i := range n {
			if m := await(t, fmt.Sprint(users[k], " gets ", i), e.got); string(m.Data) != fmt.Sprint(i) || m.Seq != uint64(i+1) {
				t.Fatalf("%s got %s with number %d, want %d", users[k], m.Data, m.Seq, i)
			}
		}
	}
}

// A large group, with one node dead: every member is stored or named.
func TestLargeGroup(t *testing.T) {
	heavy(t)
	l, nodes := threeNodes(t)
	const n = 25_000
	for i := 0; i < n; i += 5000 {
		var add []string
		for k := i; k < i+5000; k++ {
			add = append(add, fmt.Sprintf("u%05d", k))
		}
		body, err := json.Marshal(map[string]any{"add": add})
		if err != nil {
			t.Fatal(err)
		}
		l.api(t, "POST", "/v1/groups/big/members", string(body), 204, nil)
	}
	var g wire.GroupResponse
	if l.api(t, "GET", "/v1/groups/big", "", 200, &g); g.Count != n {
		t.Fatalf("%d members", g.Count)
	}
	seen := 0
	for after := ""; ; {
		l.api(t, "GET", "/v1/groups/big/members?limit=7000&after="+after, "", 200, &g)
		for _, m := range g.Members {
			if m != fmt.Sprintf("u%05d", seen) {
				t.Fatalf("member %d is %s", seen, m)
			}
			seen++
		}
		if after = g.Next; after == "" {
			break
		}
		g = wire.GroupResponse{}
	}
	if seen != n {
		t.Errorf("%d members are listed", seen)
	}
	nodes[1].kill()
	var r wire.GroupPushResult
	l.api(t, "POST", "/v1/push?group=big", `1`, 200, &r)
	if r.Members != n || r.Stored+r.FailedCount != n {
		t.Errorf("%+v", r)
	}
	if r.FailedCount > 0 {
		t.Errorf("%d failed, such as %+v", r.FailedCount, r.Failed[0])
	}
}

// Large messages to many members, of several pushes at once, wait for each other, and all
// are accepted.
func TestGroupOfLargeMessages(t *testing.T) {
	l := startLocator(t)
	startNode(t, "ws-1", l.nats)
	l.waitMembers(t, "ws-1")
	const n = 300 // more than a part has of them
	var add []string
	for i := range n {
		add = append(add, fmt.Sprintf("u%04d", i))
	}
	body, err := json.Marshal(map[string]any{"add": add})
	if err != nil {
		t.Fatal(err)
	}
	l.api(t, "POST", "/v1/groups/g/members", string(body), 204, nil)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			p := l.post("/v1/push?group=g&durable=false", "application/json", `"`+strings.Repeat("x", 65_000)+`"`, "")
			var r wire.GroupPushResult
			if err := json.Unmarshal(p.body, &r); err != nil || p.status != 200 || r.Members != n || r.FailedCount != 0 {
				t.Errorf("%d: %d of %d failed: %.300s", p.status, r.FailedCount, r.Members, p.body)
			}
		})
	}
	wg.Wait()
}
