package cluster

import "testing"

// A subscription that is behind drops what it cannot keep; that is counted, and it goes on.
func TestSlowConsumer(t *testing.T) {
	s := startNATS(t, t.TempDir(), "127.0.0.1:0")
	other := dial(t, s, "c")
	c, err := Connect(Options{URL: "nats://" + s.Addr(), Cluster: "c", Name: "slow", PendingBytes: 25, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	eventually(t, "connected", c.Up)
	hold, got := make(chan struct{}), make(chan string, 100)
	if err := c.subscribe(t.Context(), "x", func(_ string, b []byte) {
		<-hold
		got <- string(b)
	}); err != nil {
		t.Fatal(err)
	}
	if err := c.NATS().Flush(); err != nil {
		t.Fatal(err)
	}
	if c.Slow() != 0 {
		t.Error("counted too early")
	}
	for range 50 {
		other.publish("x", []byte("early"))
	}
	eventually(t, "it is counted", func() bool { return c.Slow() > 0 })
	if !c.Up() {
		t.Error("the connection is down")
	}
	close(hold)
	eventually(t, "what comes later is heard", func() bool {
		other.publish("x", []byte("late"))
		for {
			select {
			case m := <-got:
				if m == "late" {
					return true
				}
			default:
				return false
			}
		}
	})
}
