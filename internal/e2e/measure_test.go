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

// tree is a process and those that it has started.
func (p *process) tree(t *testing.T) []int {
	t.Helper()
	pids := []int{p.cmd.Process.Pid}
	for i := 0; i < len(pids); i++ {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pids[i]))
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			b, err := os.ReadFile(task)
			if err != nil {
				continue // it has ended
			}
			for c := range strings.FieldsSeq(string(b)) {
				if n, err := strconv.Atoi(c); err == nil {
					pids = append(pids, n)
				}
			}
		}
	}
	return pids
}

// rss is the resident memory of a process, and of those that it has started, in MiB.
func (p *process) rss(t *testing.T) float64 {
	t.Helper()
	sum := 0.0
	for _, pid := range p.tree(t) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		_, after, found := strings.Cut(string(b), "\nVmRSS:")
		kb, err := strconv.ParseFloat(strings.Fields(after + " ?")[0], 64)
		if !found || err != nil {
			t.Fatalf("no VmRSS: %v", err)
		}
		sum += kb / 1024
	}
	return sum
}

// cpu is the processor time of a process, and of those that it has started, so far.
func (p *process) cpu(t *testing.T) time.Duration {
	t.Helper()
	sum := time.Duration(0)
	for _, pid := range p.tree(t) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+2:]))
		for _, v := range f[11:13] { // utime and stime, in hundredths of a second
			n, err := strconv.Atoi(v)
			if err != nil {
				t.Fatal(err)
			}
			sum += time.Duration(n) * 10 * time.Millisecond
		}
	}
	return sum
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

// What an edge adds to each message, and holds for each idle session: a locator that
// relays, and nginx, in front of the same nodes.
func TestMeasureEdge(t *testing.T) {
	measures(t)
	const sessions, rounds = 1000, 200
	run := func(name string, c *edgeCluster, proxy *process, node []*nodeProc) {
		before := proxy.rss(t)
		var all []*listener
		for i := range sessions {
			all = append(all, listenAt(t, fmt.Sprintf("u-%d", i), c.tls, c.url))
		}
		idle := proxy.rss(t) - before
		var users []string
		for _, l := range all {
			users = append(users, strconv.Quote(l.user))
		}
		spent, nodes := proxy.cpu(t), time.Duration(0)
		for _, n := range node {
			nodes -= n.cpu(t)
		}
		for round := range rounds {
			body := fmt.Sprintf(`{"users":[%s],"data":"%0126d"}`, strings.Join(users, ","), round) // no message twice
			if p := c.locators[0].post("/v1/push?durable=false", "application/json", body, ""); p.status != 200 || strings.Count(string(p.body), `"delivered":1`) != sessions {
				t.Fatalf("%d %.300s", p.status, p.body)
			}
			for _, l := range all {
				await(t, "a message", l.got)
			}
		}
		spent = proxy.cpu(t) - spent
		for _, n := range node {
			nodes += n.cpu(t)
		}
		t.Logf("%s: %.1f us of CPU for each message (the three nodes: %.1f), %.1f KiB for each idle session", name,
			float64(spent.Microseconds())/sessions/rounds, float64(nodes.Microseconds())/sessions/rounds, idle*1024/sessions)
	}
	t.Run("locator", func(t *testing.T) {
		e := startLocatorEdge(t)
		run("a locator with TLS", &edgeCluster{edge: e.edge, locators: []*locatorProc{e.other}}, e.edgeLocator.process, e.nodes)
	})
	t.Run("nginx", func(t *testing.T) {
		c := startEdgeCluster(t, nginxEdge)
		run("nginx with TLS", c, c.proxy, c.nodes)
	})
}
