package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// sealKeys is a file for DIALRING_INBOX_KEYS_FILE: the keys of these ids, of which one
// seals.
func sealKeys(t *testing.T, file, seals string, ids ...string) {
	t.Helper()
	secret := func(s string) string {
		return base64.StdEncoding.EncodeToString([]byte(fmt.Sprintf("%032s", s)))
	}
	var keys []map[string]string
	for _, id := range ids {
		keys = append(keys, map[string]string{"id": id, "key": secret(id)})
	}
	b, err := json.Marshal(map[string]any{"seal": seals, "keys": keys, "message_id_key": secret("ids")})
	if err != nil {
		t.Fatal(err)
	}
	// As operators should: a reader sees the old file or the new one.
	if err := os.WriteFile(file+".new", b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// found tells in which files below a directory a text is, as it is or in base64.
func found(t *testing.T, dir, text string) (out []string) {
	t.Helper()
	texts := [][]byte{[]byte(text)}
	for i := range 3 { // base64 depends on what stands before it; its ends do, too
		b := base64.StdEncoding.EncodeToString(append(make([]byte, i), text...))
		texts = append(texts, []byte(b[4:len(b)-4]))
	}
	files := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		for _, x := range texts {
			if bytes.Contains(b, x) {
				out = append(out, path)
				break
			}
		}
		return nil
	})
	if err != nil || files == 0 {
		t.Fatalf("%d files in %s, %v", files, dir, err)
	}
	return out
}

// Payloads are stored as they are, then sealed by one key, then by another, and by none of
// the processes restarted; whoever resumes gets all, in order. What was sealed lies nowhere
// in the data of NATS, nor does who sent it, or a service's key. A node without a key says
// so, and what it cannot open waits until it has the key.
func TestSealedPayloads(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	again := restartable(t, dir)
	l := again()
	file := filepath.Join(t.TempDir(), "keys.json")
	sealKeys(t, file, "", "a")
	n := startNode(t, "ws-1", l.nats, "DIALRING_INBOX_KEYS_FILE="+file)
	l.waitMembers(t, "ws-1")
	eventually(t, "the log tells of the keys", func() bool { return strings.Contains(n.text(), `"event":"inbox_keys"`) })
	var want []string
	keep := func(body, key string) wire.PushResult {
		t.Helper()
		status, r, p := l.store(t, "alice", body, "", key)
		if status != 200 || !r.Stored || r.Duplicate || r.Seq != uint64(len(want)+1) {
			t.Fatalf("push %s: %d %+v %+v", body, status, r, p)
		}
		want = append(want, body)
		return r
	}
	repeat := func(body, key string, seq uint64) {
		t.Helper()
		if status, r, _ := l.store(t, "alice", body, "", key); status != 200 || !r.Duplicate || r.Seq != seq {
			t.Errorf("a repeat: %d %+v", status, r)
		}
	}
	rotate := func(seals string, ids ...string) {
		t.Helper()
		sealKeys(t, file, seals, ids...)
		for {
			if m := n.event(t, "inbox_keys"); strings.HasPrefix(m["seals"].(string)+"~", seals+"~") && len(m["opens"].([]any)) == len(ids) {
				return
			}
		}
	}
	const plain, secret = "canary-in-the-clear-5f2a", "canary-that-is-sealed-5f2a"
	keep(`"`+plain+`"`, "")
	rotate("a", "a")
	keep(`"`+secret+` by a"`, "order-4711")
	rotate("a", "a", "b")
	rotate("b", "a", "b")
	repeat(`"`+secret+` by a"`, "order-4711", 2)
	if status, _, p := l.store(t, "alice", `"another"`, "", "order-4711"); status != 422 || p.Code != wire.CodeKeyReused {
		t.Errorf("the key with another body: %d %+v", status, p)
	}
	keep(`"`+secret+` by b"`, "")

	// A client sends to alice, over the same log.
	var loc wire.LocateResponse
	if status, b := call(t, "POST", "http://"+l.addr+"/v1/locate?user=bob-the-sender&send_to=alice", ""); status != 200 || json.Unmarshal(b, &loc) != nil {
		t.Fatalf("locate: %d %s", status, b)
	}
	bob := dialLocated(t, loc)
	bob.write(t, map[string]any{"type": "send", "ref": "1", "to": "alice", "data": secret})
	var ack struct{ Ref string }
	bob.expectType(t, wire.TypeAck, &ack)
	want = append(want, `"`+secret+`"`)

	resumes := func(device string) {
		t.Helper()
		b := dialSince(t, l, "alice", device, "0")
		b.welcomed(t, uint64(len(want)), uint64(len(want)), false)
		for i, body := range want {
			m := b.message(t, uint64(i+1), body)
			if sender := map[bool]string{i == 3: "bob-the-sender"}[true]; m.From != sender {
				t.Errorf("message %d is from %q", i+1, m.From)
			}
		}
		b.Close()
	}
	resumes("one")

	// Another node has only the first key: it becomes the owner, gives what it can, says
	// that it lacks one, and takes pushes.
	other := filepath.Join(t.TempDir(), "keys.json")
	sealKeys(t, other, "a", "a")
	n.kill()
	n = startNode(t, "ws-1", l.nats, "DIALRING_INBOX_KEYS_FILE="+other)
	l.waitServes(t, n)
	file = other
	b := dialSince(t, l, "alice", "two", "0")
	b.welcomed(t, 4, 4, false)
	b.message(t, 1, want[0])
	b.message(t, 2, want[1])
	m := n.event(t, "unopened")
	if m["reason"] != "unknown_key" || !strings.HasPrefix(m["key"].(string), "b~") || m["seq"] != 3.0 {
		t.Errorf("%v", m)
	}
	if v := n.metric(t, `dialring_unopened_messages_total{reason="unknown_key"}`); v == 0 {
		t.Error("the metric does not count it")
	}
	repeat(`"`+secret+` by a"`, "order-4711", 2)
	keep(`"`+secret+` by a again"`, "")
	sealKeys(t, other, "b", "b", "a")
	for i := 2; i < len(want); i++ {
		b.message(t, uint64(i+1), want[i])
	}
	resumes("three")

	// A node without any.
	n.kill()
	n = startNode(t, "ws-1", l.nats)
	l.waitServes(t, n)
	b = dialSince(t, l, "alice", "four", "0")
	b.message(t, 1, want[0])
	if m := n.event(t, "unopened"); m["reason"] != "unknown_key" || m["seq"] != 2.0 {
		t.Errorf("%v", m)
	}

	// What NATS has on its disk. The embedded one holds nothing back once it has ended.
	if code := l.term(t); code != 0 {
		t.Fatalf("the locator ended with %d", code)
	}
	if len(found(t, dir, plain)) == 0 {
		t.Error("a payload that was not sealed is nowhere either: this test would not find one that leaks")
	}
	for _, text := range []string{secret, "order-4711", "bob-the-sender"} {
		if in := found(t, dir, text); len(in) > 0 {
			t.Errorf("%s is in %v", text, in)
		}
	}
}

// A file that cannot be used is an error at the start that says what to do.
func TestKeysFileIsBad(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(file, []byte(`{"seal":"a","keys":[{"id":"a","key":"c2VjcmV0LWJ1dC1zaG9ydA=="}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, "wsnode", filepath.Join(bin, "wsnode"), []string{"DIALRING_DEV=true", "DIALRING_LISTEN=127.0.0.1:0", "DIALRING_PEER_LISTEN=127.0.0.1:0", "DIALRING_ADMIN_LISTEN=127.0.0.1:0", "DIALRING_INBOX_KEYS_FILE=" + file})
	<-p.done
	if s := p.text(); p.cmd.ProcessState.ExitCode() == 0 || !strings.Contains(s, "DIALRING_INBOX_KEYS_FILE") || !strings.Contains(s, "openssl rand -base64 32") || strings.Contains(s, "c2VjcmV0") {
		t.Errorf("%d: %s", p.cmd.ProcessState.ExitCode(), s)
	}
}

// What encryption adds to a stored push: processor time of all processes, and bytes on the
// disk.
func TestMeasureSealed(t *testing.T) {
	measures(t)
	file := filepath.Join(t.TempDir(), "keys.json")
	sealKeys(t, file, "2026-11", "2026-11")
	const users, lists = 1_000, 60
	for _, size := range []int{128, 1024, 16384} {
		data := `"` + strings.Repeat("x", size-2) + `"`
		var list strings.Builder
		for i := range users {
			fmt.Fprintf(&list, `,"user-%d"`, i)
		}
		body := `{"users":[` + list.String()[1:] + `],"data":` + data + `}`
		var all, node [2]time.Duration
		var disk [2]float64
		for range 3 {
			for i, env := range [][]string{nil, {"DIALRING_INBOX_KEYS_FILE=" + file}} {
				dir := t.TempDir()
				l := startLocator(t, "DIALRING_DATA_DIR="+dir, "DIALRING_DATA_SYNC=interval")
				n := startNode(t, "ws-1", l.nats, env...)
				l.waitMembers(t, "ws-1")
				push := func() {
					if p := l.post("/v1/push", "application/json", body, ""); p.status != 200 || strings.Count(string(p.body), `"stored":true`) != users {
						t.Fatalf("%d %.200s", p.status, p.body)
					}
				}
				push()
				of, from := n.cpu(t), n.cpu(t)+l.cpu(t)
				for range lists {
					push()
				}
				node[i] += n.cpu(t) - of
				all[i] += n.cpu(t) + l.cpu(t) - from
				disk[i] += diskOf(t, dir)
				n.kill()
				l.kill()
			}
		}
		each := func(d time.Duration) time.Duration { return d / (3 * lists * users) }
		t.Logf("%d bytes: a push costs %v, encrypted %v: %.2f times; at the node %v and %v: %.2f times; on the disk %.0f bytes more for each",
			size, each(all[0]), each(all[1]), float64(all[1])/float64(all[0]), each(node[0]), each(node[1]), float64(node[1])/float64(node[0]), (disk[1]-disk[0])*(1<<20)/(3*(lists+1)*users))
	}
}
