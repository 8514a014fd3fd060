package cluster

import (
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/dialring/dialring/internal/certs"
	"github.com/dialring/dialring/internal/certs/certtest"
	"github.com/dialring/dialring/internal/config"
)

// probeOf runs a probe of url, as in development mode: servers of tests are on loopback.
func probeOf(t *testing.T, url string, public bool) probe {
	t.Helper()
	p := probe{node: "ws-1", boot: "b1", public: public, url: url}
	p.run(t.Context(), nil, true)
	return p
}

func TestProbe(t *testing.T) {
	var visits atomic.Int32 // of a place where a probe must not be led
	inner := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		visits.Add(1)
		w.Header().Set(NodeHeader, "ws-1")
		_, _ = w.Write([]byte(`{"node":"ws-1","boot":"b1"}`))
	}))
	defer inner.Close()
	answer := func(status int, node, body string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if status == http.StatusFound {
				w.Header().Set("Location", inner.URL+r.URL.Path)
			}
			if node != "" {
				w.Header().Set(NodeHeader, node)
			}
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	for _, c := range []*http.Client{prober, devProber, newProber(&certs.Files{}, false)} {
		if c.Transport.(*http.Transport).Proxy != nil {
			t.Error("probes heed the proxy of the environment")
		}
	}
	for name, c := range map[string]struct {
		url    string
		public bool
		ok     bool
		boot   string
	}{
		"peer":                 {answer(200, "", `{"node":"ws-1","boot":"b1"}`), false, true, "b1"},
		"peer with a slash":    {answer(200, "", `{"node":"ws-1","boot":"b2"}`) + "/", false, true, "b2"},
		"peer with 500":        {answer(500, "", `{"node":"ws-1","boot":"b1"}`), false, false, ""},
		"peer without JSON":    {answer(200, "", `ok`), false, false, ""},
		"peer redirects":       {answer(302, "", ``), false, false, ""},
		"peer answers a flood": {answer(200, "", strings.Repeat(" ", 1<<20)+`{"boot":"b1"}`), false, false, ""},
		"public":               {"ws" + strings.TrimPrefix(answer(400, "ws-1", ``), "http") + "/v1/ws", true, true, ""},
		"public of another":    {"ws" + strings.TrimPrefix(answer(400, "ws-2", ``), "http"), true, false, ""},
		"public of no node":    {"ws" + strings.TrimPrefix(answer(200, "", ``), "http"), true, false, ""},
		"public redirects":     {"ws" + strings.TrimPrefix(answer(302, "", ``), "http"), true, false, ""},
	} {
		p := probeOf(t, c.url, c.public)
		if p.ok != c.ok || p.refused || p.health.Boot != c.boot {
			t.Errorf("%s: ok %v, refused %v, answered %q", name, p.ok, p.refused, p.health.Boot)
		}
	}
	if n := visits.Load(); n > 0 {
		t.Errorf("%d probes were led elsewhere by a redirect", n)
	}
}

func TestProbeFails(t *testing.T) {
	if p := probeOf(t, "http://"+unusedAddr(t), false); p.ok || !p.refused {
		t.Errorf("nothing listens there: ok %v, refused %v", p.ok, p.refused)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, and answers nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if p := probeOf(t, "http://"+l.Addr().String(), false); p.ok || p.refused {
		t.Errorf("mute: ok %v, refused %v", p.ok, p.refused)
	}
	if p := probeOf(t, "::", false); p.ok || p.refused {
		t.Errorf("no URL: ok %v, refused %v", p.ok, p.refused)
	}
}

// Outside development mode a probe does not end at this machine, by whatever name: names
// are not resolved before it. With TLS neither.
func TestProbeOfLocalName(t *testing.T) {
	var visits atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		visits.Add(1)
		w.Header().Set(NodeHeader, "ws-1")
		_, _ = w.Write([]byte(`{"node":"ws-1","boot":"b1"}`))
	}))
	defer s.Close()
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	at := "//localhost:" + port // a name, as any that resolves to it
	for _, c := range []struct {
		url    string
		public bool
	}{{"http:" + at, false}, {"ws:" + at + "/v1/ws", true}} {
		for _, dev := range []bool{true, false} {
			p := probe{node: "ws-1", boot: "b1", public: c.public, url: c.url}
			p.run(t.Context(), nil, dev)
			if p.ok != dev || p.refused || !dev && !strings.Contains(p.err.Error(), "of this machine only") {
				t.Errorf("%s, development mode %v: ok %v, refused %v, %v", c.url, dev, p.ok, p.refused, p.err)
			}
		}
	}
	if n := visits.Load(); n != 2 {
		t.Errorf("it was asked %d times, want 2 in development mode", n)
	}
	dir := t.TempDir()
	certtest.New(t, "cluster").Write(t, dir, certtest.Leaf{Names: []string{"localhost"}})
	files, err := certs.Load(config.TLSFiles{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key"), CA: filepath.Join(dir, "ca.pem")}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	secure := probe{node: "ws-1", boot: "b1", url: "https:" + at}
	if secure.run(t.Context(), files, false); secure.ok || !strings.Contains(secure.err.Error(), "of this machine only") {
		t.Errorf("with TLS: %v", secure.err)
	}
	for address, local := range map[string]bool{"127.0.0.1:80": true, "127.8.9.1:80": true, "[::1]:80": true, "[::ffff:127.0.0.1]:80": true, "169.254.169.254:80": true, "[fe80::1%eth0]:80": true, "0.0.0.0:80": true,
		"[::]:80": true, "10.0.0.1:80": false, "192.0.2.1:80": false, "[2001:db8::1]:80": false, "[fd00::1]:80": false} {
		if err := notLocal("tcp", address, nil); (err != nil) != local {
			t.Errorf("%s: %v", address, err)
		}
	}
}

// An address that CheckAddress lets through outside development mode never
// ends at this machine, however its digits are written.
func TestProbeWideDigits(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"boot":"internal"}`))
	}))
	defer s.Close()
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	url := "http://\uff11\uff12\uff17.0.0.1:" + port
	if CheckAddress(url, false, "http") == nil {
		if p := probeOf(t, url, false); p.health.Boot == "internal" {
			t.Errorf("%s is allowed, and its probe reached 127.0.0.1", url)
		}
	}
}
