package e2e

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// exported is a metric of ours as a program really exports it.
type exported struct {
	typ, help string
	labels    map[string]bool
	series    int
}

// scrape reads the metrics of a program that begin with dialring_.
func scrape(t *testing.T, addr string) map[string]*exported {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	out := map[string]*exported{}
	get := func(name string) *exported {
		if out[name] == nil {
			out[name] = &exported{labels: map[string]bool{}}
		}
		return out[name]
	}
	s := bufio.NewScanner(io.LimitReader(resp.Body, 8<<20))
	for s.Scan() {
		line := s.Text()
		if f := strings.SplitN(line, " ", 4); f[0] == "#" && len(f) == 4 {
			if strings.HasPrefix(f[2], "dialring_") {
				if m := get(f[2]); f[1] == "HELP" {
					m.help = f[3]
				} else {
					m.typ = f[3]
				}
			}
			continue
		}
		name, _, _ := strings.Cut(line, " ")
		name, labels, _ := strings.Cut(name, "{")
		if !strings.HasPrefix(name, "dialring_") {
			continue
		}
		if strings.Contains(line, "{") {
			labels = line[strings.Index(line, "{")+1 : strings.LastIndex(line, "}")]
		}
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base, ok := strings.CutSuffix(name, suffix); ok && out[base] != nil {
				name = base
			}
		}
		m := get(name)
		m.series++
		for l := range strings.SplitSeq(labels, ",") {
			if k, _, ok := strings.Cut(l, "="); ok && k != "le" {
				m.labels[k] = true
			}
		}
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

func repository(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The table of metrics for operators has exactly those that the programs export, with
// their types, labels and meaning; names have units and labels few values.
func TestMetricsAreDocumented(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	n := startNode(t, "ws-1", l.nats)
	l.waitMembers(t, "ws-1")
	alice := listen(t, "alice", l)
	if status, b := call(t, "POST", "http://"+l.addr+"/v1/push/alice", `"x"`); status != 200 {
		t.Fatalf("push: %d %s", status, b)
	}
	alice.expect(t, `"x"`)
	l.push(t, "alice", `"y"`)

	have := map[string]string{} // row by name
	units := []string{"_total", "_seconds", "_bytes"}
	counts := []string{"dialring_sessions", "dialring_sessions_limit", "dialring_misplaced_sessions", "dialring_handoffs", "dialring_handoff_sessions", "dialring_nodes", "dialring_locators",
		"dialring_ring_epoch", "dialring_ring_hash", "dialring_ring_nodes", "dialring_nats_up", "dialring_edge_sessions", "dialring_store_up", "dialring_draining", "dialring_peer_batch_calls", "dialring_inbox_keys", "dialring_api_keys", "dialring_api_keys_file_ok", "dialring_handshakes_pending", "dialring_calls_running", "dialring_connections", "dialring_locates_admitted_share", "dialring_locates_running"}
	for program, addr := range map[string]string{"locator": l.admin, "node": n.admin} {
		for name, m := range scrape(t, addr) {
			if m.help == "" || m.typ == "" || m.series == 0 {
				t.Errorf("%s of the %s has help %q, type %q and %d series", name, program, m.help, m.typ, m.series)
			}
			if !slices.ContainsFunc(units, func(u string) bool { return strings.HasSuffix(name, u) }) && !slices.Contains(counts, name) {
				t.Errorf("%s: no unit in its name", name)
			}
			if (m.typ == "counter") != strings.HasSuffix(name, "_total") {
				t.Errorf("%s is a %s", name, m.typ)
			}
			for label := range m.labels { // of key there are as many as entries in the file, 1,000 at most
				if !slices.Contains([]string{"result", "kind", "reason", "form", "credential", "address", "state", "target", "event", "how", "key", "limit"}, label) {
					t.Errorf("%s has the label %s: has it few values?", name, label)
				}
			}
			row := fmt.Sprintf("| `%s` | %s | %s |", name, m.typ, strings.Join(slices.Sorted(maps.Keys(m.labels)), ", "))
			if _, both := have[name]; both {
				row = fmt.Sprintf("| `%s` | %s | %s | both | %s |", name, m.typ, strings.Join(slices.Sorted(maps.Keys(m.labels)), ", "), m.help)
			} else {
				row = fmt.Sprintf("%s %s | %s |", row, program, m.help)
			}
			have[name] = row
		}
	}
	doc := map[string]string{}
	for line := range strings.SplitSeq(repository(t, "deploy/OBSERVABILITY.md"), "\n") {
		if strings.HasPrefix(line, "| `dialring_") {
			doc[strings.Trim(strings.Fields(line)[1], "`")] = line
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		if doc[name] != have[name] {
			t.Errorf("deploy/OBSERVABILITY.md must have\n%s\nand has\n%s", have[name], doc[name])
		}
	}
	for name := range doc {
		if have[name] == "" {
			t.Errorf("deploy/OBSERVABILITY.md has %s, which nobody exports", name)
		}
	}
}
