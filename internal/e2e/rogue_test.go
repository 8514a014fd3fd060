package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/wire"
)

// Somebody has the token of NATS, in a cluster without cluster keys, and says heartbeats of
// nodes: one that is honest gets in, which shows that they are heard; none does whose
// addresses are of the locator's own host or of the metadata service of a cloud, in any
// spelling, redirect elsewhere, or whose weight would take all users. Nothing on loopback is
// asked for anything. Without the token nobody says anything.
func TestRogueNode(t *testing.T) {
	t.Parallel()
	c := startNormal(t, 1)
	for _, token := range []string{"", "wrong", normalNATSToken[:15]} {
		if nc, err := nats.Connect(c.l.nats, nats.Token(token)); err == nil {
			nc.Close()
			t.Errorf("NATS takes the token %q", token)
		}
	}
	var asked atomic.Int32
	inner := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		t.Errorf("something on loopback was asked for %s of %s", r.URL, r.Host)
	}))
	defer inner.Close()
	_, port, err := net.SplitHostPort(inner.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	// A server that answers as whatever node it is asked for, beyond loopback.
	fake := func(h http.HandlerFunc) string {
		l, err := net.Listen("tcp", net.JoinHostPort(ownAddress(t), "0"))
		if err != nil {
			t.Fatal(err)
		}
		s := &httptest.Server{Listener: l, Config: &http.Server{Handler: h}}
		s.Start()
		t.Cleanup(s.Close)
		return l.Addr().String()
	}
	honest := fake(func(w http.ResponseWriter, r *http.Request) {
		id, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		w.Header().Set(cluster.NodeHeader, id)
		_, _ = io.WriteString(w, `{"node":"`+id+`","boot":"boot-of-`+id+`"}`)
	})
	var redirected atomic.Int32
	redirecting := fake(func(w http.ResponseWriter, r *http.Request) {
		redirected.Add(1)
		http.Redirect(w, r, "http://"+honest+r.URL.Path, http.StatusFound)
	})
	beats := map[string]cluster.NodeBeat{}
	add := func(id, public, peer string, edit func(*cluster.NodeBeat)) {
		b := cluster.NodeBeat{ID: id, Boot: "boot-of-" + id, URL: "ws://" + public + "/" + id, PeerURL: "http://" + peer + "/" + id, Weight: 1, State: wire.StateJoining}
		if edit != nil {
			edit(&b)
		}
		beats[id] = b
	}
	for i, host := range []string{"127.0.0.1", "localhost", "LOCALHOST.", "x.localhost", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "0x7f000001", "2130706433", "0177.0.0.1", "127.1", "0.0.0.0", "[::]",
		"\uff11\uff12\uff17.0.0.1", "169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]", "0xa9fea9fe", "user@127.0.0.1", "224.0.0.1"} {
		add(fmt.Sprintf("public-%d", i), host+":"+port, honest, nil)
		add(fmt.Sprintf("peer-%d", i), honest, host+":"+port, nil)
	}
	add("redirect-public", redirecting, honest, nil)
	add("redirect-peer", honest, redirecting, nil)
	for name, weight := range map[string]int{"zero": 0, "heavy": 1_000_000_000, "below": -1, "over": 65} {
		add(name, honest, honest, func(b *cluster.NodeBeat) { b.Weight = weight })
	}
	for name, url := range map[string]string{"file": "file:///etc/passwd", "gopher": "gopher://" + honest, "long": "http://" + honest + "/" + strings.Repeat("a", 5000)} {
		add(name, honest, honest, func(b *cluster.NodeBeat) { b.PeerURL = url })
		add(name+"-public", honest, honest, func(b *cluster.NodeBeat) { b.URL = url })
	}
	add("honest", honest, honest, nil) // the control

	nc, err := nats.Connect(c.l.nats, nats.Token(normalNATSToken))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	say := func() {
		for id, b := range beats {
			b.Time = time.Now()
			m, err := json.Marshal(b)
			if err != nil {
				t.Fatal(err)
			}
			if err := nc.Publish("dialring.beat.node."+id, m); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, "the honest one is in the ring, and both redirects were seen", func() bool {
		say()
		_, in := c.l.members(t)["honest"]
		return in && redirected.Load() >= 4
	})
	for id, n := range c.l.members(t) {
		if id != "honest" && id != "ws-1" {
			t.Errorf("%s is in the ring: %+v", id, n)
		}
	}
	if asked.Load() > 0 {
		t.Error("something on loopback was asked")
	}
	c.l.event(t, "beat_refused")
}
