package e2e

import (
	"os"
	"testing"
)

// What deploy/README.md says of a backup: a copy of DIALRING_DATA_DIR that was made while its
// locator was stopped. After it was put back the users have what they had then; a client that
// had more is told so by gap.
func TestBackupRestored(t *testing.T) {
	t.Parallel()
	dir, backup := t.TempDir()+"/data", t.TempDir()+"/data"
	again := restartable(t, dir)
	l := again()
	startNode(t, "ws-1", l.nats)
	l.waitMembers(t, "ws-1")
	stored := func(user, data string) {
		t.Helper()
		eventually(t, "the store takes messages", func() bool { status, _, _ := l.store(t, user, data, "", data); return status == 200 })
	}
	stored("alice", `"one"`)
	stored("alice", `"two"`)
	b := dialSince(t, l, "alice", "d", "0")
	b.message(t, 1, `"one"`)
	before := b.message(t, 2, `"two"`).Cursor
	b.Close()
	if status, body := call(t, "PUT", "http://"+l.addr+"/v1/groups/g/members/alice", ""); status != 204 {
		t.Fatalf("a group: %d %s", status, body)
	}
	if code := l.term(t); code != 0 {
		t.Fatalf("the locator ended with %d", code)
	}
	if err := os.CopyFS(backup, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}

	l = again()
	l.waitMembers(t, "ws-1")
	stored("alice", `"lost"`)
	b = dialSince(t, l, "alice", "d", before)
	after := b.message(t, 3, `"lost"`).Cursor
	b.Close()
	l.kill()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(dir, os.DirFS(backup)); err != nil {
		t.Fatal(err)
	}

	l = again()
	l.waitMembers(t, "ws-1")
	stored("bob", `"the store is there"`)
	// Who had nothing later than the backup has lost nothing.
	b = dialSince(t, l, "alice", "e", before)
	b.welcomed(t, 2, 0, false)
	// Who had more is told, and gets all that there is.
	b = dialSince(t, l, "alice", "d", after)
	b.welcomed(t, 2, 2, true)
	b.message(t, 1, `"one"`)
	b.message(t, 2, `"two"`)
	if r := l.keep(t, "alice", `"new"`); r.Seq != 3 {
		t.Errorf("the next message is %d", r.Seq)
	}
	b.message(t, 3, `"new"`)
	if status, body := call(t, "GET", "http://"+l.addr+"/v1/groups/g", ""); status != 200 || string(body) == "" {
		t.Errorf("the group: %d %s", status, body)
	}
	if p := l.post("/v1/push?group=g", "application/json", `"to the group"`, ""); p.status != 200 {
		t.Errorf("push to the group: %d %s", p.status, p.body)
	}
	b.message(t, 4, `"to the group"`)
}
