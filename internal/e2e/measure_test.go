package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// measures has a test run only when figures are wanted: it proves nothing.
func measures(t *testing.T) {
	t.Helper()
	if os.Getenv("DIALRING_MEASURE") != "1" {
		t.Skip("a measurement: task measure runs it")
	}
}

// How long it takes from a dial to the last of 100 pending messages.
func TestMeasurePending(t *testing.T) {
	measures(t)
	l, _ := threeNodes(t)
	for range 100 {
		l.keep(t, "alice", `"`+strings.Repeat("x", 126)+`"`)
	}
	var took []time.Duration
	for range 200 {
		loc := l.locate(t, "alice", `{"device":"d"}`)
		loc.URL += "?since=0"
		begin := time.Now()
		b := dialLocated(t, loc)
		for n := uint64(1); n <= 100; n++ {
			b.message(t, n, `"`+strings.Repeat("x", 126)+`"`)
		}
		took = append(took, time.Since(begin))
		b.Close()
	}
	slices.Sort(took)
	t.Logf("from the dial to the last of 100 pending messages of 128 bytes: median %v, 99 %% within %v", took[len(took)/2], took[len(took)*99/100])
}

// What a million users with one stored message each take of the locator with its
// NATS, and of the disk.
func TestMeasureMillion(t *testing.T) {
	measures(t)
	dir := t.TempDir()
	l := startLocator(t, "DIALRING_DATA_DIR="+dir, "DIALRING_DATA_SYNC=interval")
	nodes := nodesOf(t, l, l.nats)
	before := l.rss(t)
	data := `"` + strings.Repeat("x", 126) + `"`
	begin := time.Now()
	const users, list = 1_000_000, 5_000
	for from := 0; from < users; from += list {
		var b strings.Builder
		b.WriteString(`{"users":[`)
		for i := range list {
			if i > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, `"user-%d"`, from+i)
		}
		p := l.post("/v1/push", "application/json", b.String()+`],"data":`+data+`}`, "")
		if n := strings.Count(string(p.body), `"stored":true`); p.status != 200 || n != list {
			t.Fatalf("%d, %d stored: %.200s", p.status, n, p.body)
		}
	}
	took := time.Since(begin)
	at := func(when string) {
		all := 0.0
		for _, n := range nodes {
			all += n.rss(t)
		}
		t.Logf("%s: locator with NATS %.0f MiB (before: %.0f), three nodes %.0f MiB, disk %.0f MiB", when, l.rss(t), before, all, diskOf(t, dir))
	}
	at(fmt.Sprintf("a million users with a message of 128 bytes, stored within %v", took.Round(time.Second)))
	time.Sleep(150 * time.Second) // the keys are forgotten after two minutes
	at("when the keys of idempotency are forgotten")
}

// rss is a process's resident memory in MiB.
func (p *process) rss(t *testing.T) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kb, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb / 1024
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// diskOf is what a directory's files take in MiB.
func diskOf(t *testing.T, dir string) float64 {
	t.Helper()
	sum := int64(0)
	err := filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			sum += info.Size()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return float64(sum) / (1 << 20)
}

// What a group of a million members takes: to fill, to read at a new owner, to push to.
func TestMeasureGroup(t *testing.T) {
	measures(t)
	l := startLocator(t, "DIALRING_DATA_SYNC=interval")
	nodes := nodesOf(t, l, l.nats)
	rss := func() (out []float64) {
		for _, n := range nodes {
			out = append(out, n.rss(t))
		}
		return append(out, l.rss(t))
	}
	before := rss()
	const members, list = 1_000_000, 10_000
	begin := time.Now()
	for from := 0; from < members; from += list {
		var b strings.Builder
		b.WriteString(`{"add":[`)
		for i := range list {
			if i > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, `"user-%d"`, from+i)
		}
		if p := l.post("/v1/groups/all/members", "application/json", b.String()+`]}`, ""); p.status != 204 {
			t.Fatalf("%d: %.200s", p.status, p.body)
		}
	}
	t.Logf("%d members were added in %v", members, time.Since(begin))
	begin = time.Now()
	p := l.post("/v1/push?group=all&durable=false", "application/json", `"hello"`, "")
	t.Logf("an ephemeral push to all of them, none connected: %v: %d %.120s", time.Since(begin), p.status, p.body)
	t.Logf("resident memory of the nodes and the locator before: %v MiB, and now: %v MiB", before, rss())
	// The next owner reads all members.
	var owner *nodeProc
	for _, n := range nodes {
		if owner == nil || n.rss(t) > owner.rss(t) {
			owner = n
		}
	}
	owner.kill()
	begin = time.Now()
	for tries := 1; ; tries++ {
		status, b := call(t, "GET", "http://"+l.addr+"/v1/groups/all", "")
		if status == 200 {
			t.Logf("after its owner was killed the group was known again after %v and %d calls: %s", time.Since(begin), tries, b)
			return
		}
		if time.Since(begin) > 2*time.Minute {
			t.Fatalf("%d %s", status, b)
		}
	}
}
