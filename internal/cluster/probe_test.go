package cluster

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

// probeOf runs a probe of url.
func probeOf(t *testing.T, url string, public bool) probe {
	t.Helper()
	p := probe{node: "ws-1", boot: "b1", public: public, url: url}
	p.run(t.Context())
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
	if prober.Transport.(*http.Transport).Proxy != nil {
		t.Error("probes heed the proxy of the environment")
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
