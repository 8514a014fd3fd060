package wsnode

import (
	"net"
	"testing"

	"github.com/dialring/dialring/internal/wire"
)

// A NODE_URL without a path gets the contract's.
func TestConfigNodeURLPath(t *testing.T) {
	for given, want := range map[string]string{
		"wss://ws-1.example.com":            "wss://ws-1.example.com/v1/ws",
		"wss://ws-1.example.com/":           "wss://ws-1.example.com/v1/ws",
		"ws://ws-1.example.com:8090":        "ws://ws-1.example.com:8090/v1/ws",
		"wss://edge.example.com/ws-1":       "wss://edge.example.com/ws-1",
		"wss://edge.example.com/ws-1/v1/ws": "wss://edge.example.com/ws-1/v1/ws",
		"wss://[2001:db8::1]:8090":          "wss://[2001:db8::1]:8090/v1/ws",
	} {
		n, err := New(Config{NodeID: "ws-1", NodeURL: given, PeerURL: "http://10.0.0.1:8092"})
		if err != nil {
			t.Errorf("%s: %v", given, err)
		} else if n.cfg.NodeURL != want {
			t.Errorf("%s became %s, want %s", given, n.cfg.NodeURL, want)
		}
	}
}

// Development mode advertises where it listens, under an address that works.
func TestConfigAdvertise(t *testing.T) {
	addr := func(s string) net.Addr {
		a, err := net.ResolveTCPAddr("tcp", s)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for _, c := range []struct{ listen, url, peer string }{
		{"127.0.0.1:8090", "ws://127.0.0.1:8090/v1/ws", "http://127.0.0.1:8090"},
		{"0.0.0.0:8090", "ws://127.0.0.1:8090/v1/ws", "http://127.0.0.1:8090"},
		{"[::]:8090", "ws://127.0.0.1:8090/v1/ws", "http://127.0.0.1:8090"},
		{"[::1]:8090", "ws://[::1]:8090/v1/ws", "http://[::1]:8090"},
	} {
		var cfg Config
		cfg.advertise(addr(c.listen), addr(c.listen))
		if cfg.NodeURL != c.url || cfg.PeerURL != c.peer {
			t.Errorf("%s: %s and %s", c.listen, cfg.NodeURL, cfg.PeerURL)
		}
		cfg = Config{NodeURL: "wss://a.example.com/x", PeerURL: "https://b.example.com"}
		cfg.advertise(addr(c.listen), addr(c.listen))
		if cfg.NodeURL != "wss://a.example.com/x" || cfg.PeerURL != "https://b.example.com" {
			t.Errorf("what was set became %s and %s", cfg.NodeURL, cfg.PeerURL)
		}
	}
}

func TestConfigNodeID(t *testing.T) {
	for host, want := range map[string]string{"WS-1": "ws-1", "ws_1.example.com": "ws-1-example-com", "é": "-"} {
		if got := wire.HostID(host, wire.MaxNodeID); got != want {
			t.Errorf("%s: %s", host, got)
		}
	}
}
