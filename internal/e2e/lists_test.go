package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/wire"
)

// plain has the test run the programs as they are shipped. With the race detector in them
// they store some 3,000 messages a second, and of 10,000 that are pushed at once those that
// wait for more than 2 s are refused: true, and nothing of what is asked here.
func plain(t *testing.T) {
	t.Helper()
	if raceFlag == "" {
		return
	}
	was, dir := bin, t.TempDir()
	for _, name := range []string{"locator", "wsnode"} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, name), "./"+name+"/cmd/"+name)
		cmd.Dir = filepath.Join("..", "..")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", name, err, out)
		}
	}
	t.Cleanup(func() { bin = was })
	bin = dir
}

// list is a stored push to as many users as a call may have, and who owned each of them
// when it was made.
type list struct {
	l     *locatorProc
	users []string
	owner map[string]string
	body  string
}

// listData is what is pushed; it has to arrive as it is.
const listData = `{"to" : "all"}`

func newList(t *testing.T, l *locatorProc, name string) *list {
	t.Helper()
	li := &list{l: l, owner: map[string]string{}}
	r := ring.Of(equal("ws-1", "ws-2", "ws-3"))
	for i := range wire.MaxUsersPerCall {
		u := fmt.Sprintf("%s-%d", name, i)
		li.users = append(li.users, u)
		o, _ := r.Owner(u)
		li.owner[u] = o.ID
	}
	b, err := json.Marshal(li.users)
	if err != nil {
		t.Fatal(err)
	}
	li.body = `{"users":` + string(b) + `,"data":` + listData + `}`
	return li
}

type listResult struct {
	wire.PushResult
	Error *wire.PushError
}

// push makes the call with a key, from any goroutine.
func (li *list) push(key string) <-chan posted {
	out := make(chan posted, 1)
	go func() { out <- li.l.post("/v1/push", "application/json", li.body, key) }()
	return out
}

// judged reads the answer: 200, with a result for each user in the order of the call,
// stored as the user's first message or an error that says why. Only users of a node
// that was harmed may have one. It returns how many have.
func (li *list) judged(t *testing.T, p posted, harmed string) (results []listResult, failed int) {
	t.Helper()
	var r struct{ Results []listResult }
	if err := json.Unmarshal(p.body, &r); p.status != 200 || err != nil || len(r.Results) != len(li.users) {
		t.Fatalf("the call is answered %d with %d results, %v: %.300s", p.status, len(r.Results), err, p.body)
	}
	wrong, others := 0, 0
	for i, x := range r.Results {
		switch {
		case x.User != li.users[i]:
			t.Fatalf("result %d is of %q, want %q", i, x.User, li.users[i])
		case x.Error == nil && (!x.Stored || x.Seq != 1 || x.ID == "" || x.Node == "" || x.Epoch == 0):
			if wrong++; wrong < 5 {
				t.Errorf("result %d: %+v", i, x)
			}
		case x.Error != nil:
			if x.Error.Detail == "" || x.Error.Code != wire.CodeOwnerUnreachable && x.Error.Code != wire.CodeStoreUnavailable {
				t.Errorf("result %d: %+v", i, *x.Error)
			}
			if failed++; li.owner[x.User] != harmed {
				if others++; others < 5 {
					t.Errorf("%s of %s, which nobody harmed, is not stored: %+v", x.User, li.owner[x.User], *x.Error)
				}
			}
		}
	}
	if wrong > 0 || others > 0 {
		t.Errorf("%d results are neither stored nor an error; %d errors are of users whose node nobody harmed", wrong, others)
	}
	return r.Results, failed
}

// inboxes reads what some users have, of each node, both those who were stored at first
// and those who were not: who was told that it is stored has it, as the only one; who was
// not may have it, once.
func (li *list) inboxes(t *testing.T, results, first []listResult) {
	t.Helper()
	taken := map[string]int{}
	for i, x := range results {
		kind := fmt.Sprint(li.owner[x.User], first[i].Error == nil)
		if taken[kind]++; taken[kind] > 20 {
			continue
		}
		b := dialSince(t, li.l, x.User, "reader", "0")
		if x.Error == nil {
			b.welcomed(t, 1, 1, false)
		}
		if w := b.welcome; w.Head > 1 || w.Head != w.Pending {
			t.Fatalf("%s has %d messages, %d of them kept: the call was one", x.User, w.Head, w.Pending)
		}
		if b.welcome.Head == 1 {
			if m := b.message(t, 1, listData); x.Error == nil && m.ID != x.ID {
				t.Errorf("%s has message %s and was told of %s", x.User, m.ID, x.ID)
			}
		}
		b.Close()
	}
}

// again repeats the call with its key until everything is stored: what was stored before
// is named as it was, and nobody has it twice.
func (li *list) again(t *testing.T, key string, first []listResult) {
	t.Helper()
	var results []listResult
	eventually(t, "the repeated call stores what is missing", func() bool {
		var failed int
		results, failed = li.judged(t, await(t, "the repeated call is answered", li.push(key)), "ws-2")
		return failed == 0
	})
	bad := 0
	for i, x := range results {
		if f := first[i]; f.Error == nil && (!x.Duplicate || x.ID != f.ID) {
			if bad++; bad < 5 {
				t.Errorf("%s: first %+v, then %+v", x.User, f.PushResult, x.PushResult)
			}
		}
	}
	if bad > 0 {
		t.Errorf("%d users' repeats are not told as such", bad)
	}
	li.inboxes(t, results, first)
}

// A node is killed just before a call for 10,000 users, and just after it has begun to
// store them.
func TestListAndKilledNode(t *testing.T) {
	plain(t)
	for _, when := range []string{"before", "after"} {
		t.Run(when, func(t *testing.T) {
			l, nodes := threeNodes(t)
			l.settled(t)
			li := newList(t, l, "listed")
			var answer <-chan posted
			if when == "before" {
				nodes[1].kill()
				answer = li.push("k")
			}
			for n := 0; answer == nil; n++ {
				const stored = `dialring_inbox_appends_total{result="ok"}`
				before := nodes[1].metric(t, stored)
				call := li.push("k")
				eventually(t, "ws-2 has stored some", func() bool { return nodes[1].metric(t, stored) >= before+100 })
				if len(call) > 0 { // it was over before this looked: others, then
					li = newList(t, l, fmt.Sprint("listed-", n))
					continue
				}
				nodes[1].kill()
				answer = call
			}
			results, failed := li.judged(t, await(t, "the call is answered", answer), "ws-2")
			t.Logf("%d errors", failed)
			l.waitMembers(t, "ws-1", "ws-3")
			li.inboxes(t, results, results)
			li.again(t, "k", results)
		})
	}
}

// A node is stopped, and nobody refuses anything for it: what its users' pushes wait for
// holds up no others, and the call ends. When the node goes on it carries out nothing
// that was not answered.
func TestListAndStoppedNode(t *testing.T) {
	plain(t)
	l, nodes := threeNodes(t)
	l.settled(t)
	li := newList(t, l, "listed")
	if err := nodes[1].cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	results, failed := li.judged(t, await(t, "the call is answered", li.push("k")), "ws-2")
	t.Logf("%d errors", failed)
	if failed == 0 {
		t.Error("everything was stored: the node was not stopped in time")
	}
	l.waitMembers(t, "ws-1", "ws-3")
	li.inboxes(t, results, results)
	if err := nodes[1].cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	l.waitMembers(t, "ws-1", "ws-2", "ws-3") // it has seen that it was out
	l.settled(t)
	li.inboxes(t, results, results)
	li.again(t, "k", results)
}
