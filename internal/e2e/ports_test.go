//go:build linux

package e2e

import (
	"encoding/hex"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// listening are the sockets of a process that take connections or datagrams, such as "tcp
// everywhere:8080", from what the kernel says of it.
func listening(t *testing.T, pid int) []string {
	t.Helper()
	own := map[string]bool{}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name())); err == nil {
			own[strings.Trim(strings.TrimPrefix(to, "socket:"), "[]")] = true
		}
	}
	var out []string
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
			f := strings.Fields(line)
			const listen, unconnected = "0A", "07"
			if i == 0 || len(f) < 10 || !own[f[9]] || f[3] != listen && f[3] != unconnected {
				continue
			}
			address, port, _ := strings.Cut(f[1], ":")
			n, err := strconv.ParseUint(port, 16, 16)
			raw, err2 := hex.DecodeString(address)
			if err != nil || err2 != nil {
				t.Fatalf("%s of %d: %s", table, pid, line)
			}
			for w := range slices.Chunk(raw, 4) { // words of the machine
				slices.Reverse(w)
			}
			where := net.IP(raw).String()
			if ip := net.IP(raw); ip.IsLoopback() {
				where = "loopback"
			} else if ip.IsUnspecified() {
				where = "everywhere"
			}
			out = append(out, fmt.Sprintf("%s %s:%d", table[:3], where, n))
		}
	}
	slices.Sort(out)
	return out
}

// documentedPorts are those of the table in deploy/README.md, by program; when says which of its
// conditions hold beside "always".
func documentedPorts(t *testing.T, program string, when ...string) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "deploy", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	rows := regexp.MustCompile("(?m)^\\| (\\d+) \\| (\\w+) \\| (\\w+) \\| `(\\w+)` \\| ([^|]+) \\|").FindAllStringSubmatch(string(b), -1)
	if len(rows) != 7 {
		t.Fatalf("the table has %d ports", len(rows))
	}
	for _, r := range rows {
		if r[2] == program && (r[5] == "always" || slices.Contains(when, r[5])) {
			out = append(out, fmt.Sprintf("tcp %s:%s", r[3], r[1]))
		}
	}
	slices.Sort(out)
	return out
}

const (
	whenEmbedded = "without `DIALRING_NATS_URL`"
	whenRoutes   = "with `DIALRING_NATS_ROUTES`"
)

// scan connects to each port of an address, and returns those that take it.
func scan(t *testing.T, ip string) (open []int) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	ports := make(chan int)
	for range 64 {
		wg.Go(func() {
			for p := range ports {
				c, err := net.Dial("tcp", net.JoinHostPort(ip, strconv.Itoa(p)))
				if err != nil {
					continue
				}
				c.Close()
				mu.Lock()
				open = append(open, p)
				mu.Unlock()
			}
		})
	}
	for p := 1; p <= 65535; p++ {
		ports <- p
	}
	close(ports)
	wg.Wait()
	slices.Sort(open)
	return open
}

// The programs as the guide has them, by their defaults, on a host of their own: they listen where
// its table of ports says, and from another host nothing else answers, and nothing of the admin
// listeners at the ports that do.
func TestPorts(t *testing.T) {
	n := newNet(t)
	h := n.host(t, "all")
	token := "DIALRING_NATS_TOKEN=a token of the tests"
	normal := []string{"DIALRING_LOG_FORMAT=json", token, "DIALRING_API_KEYS=key", "DIALRING_USER_JWT_SECRET=0123456789abcdef0123456789abcdef", "DIALRING_EDGE=true"}
	l := h.start(t, "locator", filepath.Join(bin, "locator"), normal...)
	w := h.start(t, "node", filepath.Join(bin, "wsnode"), "DIALRING_LOG_FORMAT=json", token, "DIALRING_NODE_ID=ws-1",
		"DIALRING_NODE_URL=ws://"+h.ip+":8080/n/ws-1/v1/ws", "DIALRING_PEER_URL=http://"+h.ip+":8092")
	for p, want := range map[*process][]string{l: documentedPorts(t, "locator", whenEmbedded), w: documentedPorts(t, "wsnode")} {
		p.event(t, "listening")
		if got := listening(t, p.cmd.Process.Pid); !slices.Equal(got, want) {
			t.Errorf("%s listens at %q, and the guide says %q", p.name, got, want)
		}
	}
	// As one of several, whose others are not there: it has no majority, and listens.
	r := n.host(t, "route")
	routes := r.start(t, "locator with routes", filepath.Join(bin, "locator"), append(normal, "DIALRING_NATS_ROUTE_SECRET=0123456789abcdef",
		"DIALRING_NATS_ROUTES="+r.ip+":6222,"+h.ip+":6222")...)
	want := documentedPorts(t, "locator", whenEmbedded, whenRoutes)
	eventually(t, "the locator with routes listens", func() bool { return len(listening(t, routes.cmd.Process.Pid)) >= len(want) })
	if got := listening(t, routes.cmd.Process.Pid); !slices.Equal(got, want) {
		t.Errorf("with routes it listens at %q, and the guide says %q", got, want)
	}
	for ip, want := range map[string][]string{h.ip: append(documentedPorts(t, "locator", whenEmbedded), documentedPorts(t, "wsnode")...), r.ip: want} {
		var public []int
		for _, s := range want {
			if port, ok := strings.CutPrefix(s, "tcp everywhere:"); ok {
				p, _ := strconv.Atoi(port)
				public = append(public, p)
			}
		}
		slices.Sort(public)
		if open := scan(t, ip); !slices.Equal(open, public) {
			t.Errorf("from another host ports %v of %s are open, and the guide says %v", open, ip, public)
		}
	}
	for _, port := range []int{8080, 8090, 8092} {
		for _, path := range []string{"/metrics", "/debug/pprof/", "/debug/pprof/heap", "/debug/vars", "/", "/index.html", "/admin/v1/state", "/admin/v1/events", "/admin/login", "/varz", "/connz"} {
			resp, err := http.Get(fmt.Sprintf("http://%s:%d%s", h.ip, port, path))
			if err != nil {
				t.Fatal(err)
			}
			if resp.Body.Close(); resp.StatusCode != 404 {
				t.Errorf("port %d answers %s with %d", port, path, resp.StatusCode)
			}
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

// In development mode nothing listens beyond loopback.
func TestPortsOfDevelopment(t *testing.T) {
	l := startLocator(t)
	n := startNode(t, "ws-1", l.nats)
	r := startLocator(t, "DIALRING_EDGE=true", fmt.Sprintf("DIALRING_NATS_ROUTE_LISTEN=127.0.0.1:%d", freePort(t)), fmt.Sprintf("DIALRING_NATS_ROUTES=127.0.0.1:%d", freePort(t)))
	l.waitMembers(t, "ws-1")
	counts := map[*process]int{l.process: 3, n.process: 3, r.process: 4}
	for _, p := range slices.Collect(maps.Keys(counts)) {
		got := listening(t, p.cmd.Process.Pid)
		for _, s := range got {
			if !strings.HasPrefix(s, "tcp loopback:") {
				t.Errorf("%s listens at %s", p.name, s)
			}
		}
		if len(got) != counts[p] {
			t.Errorf("%s listens at %q", p.name, got)
		}
	}
}
