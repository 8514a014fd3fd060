package natsd

import (
	"fmt"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// Who does not take what it asked for is ended when its bytes are too many, and counted; others
// go on.
func TestSlowConsumer(t *testing.T) {
	s, err := Start(t.Context(), Options{Name: "s", Listen: "127.0.0.1:0", Dir: t.TempDir(), MaxPending: 4 << 20, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	slow, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	fmt.Fprint(slow, "CONNECT {\"verbose\":false}\r\nSUB x 1\r\n")
	nc, err := nats.Connect("nats://" + s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	quick, err := nc.SubscribeSync("y")
	if err != nil {
		t.Fatal(err)
	}
	body := make([]byte, 1<<20)
	published := 0
	for end := time.Now().Add(time.Minute); s.SlowConsumers() == 0; published++ {
		if err := nc.Publish("x", body); err != nil {
			t.Fatal(err)
		}
		if err := nc.FlushTimeout(time.Minute); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(end) {
			t.Fatal("a connection that takes nothing is never ended")
		}
	}
	if published > defaultPending>>20 { // the kernel takes some MiB
		t.Errorf("it was ended after %d MiB", published)
	}
	if err := nc.Publish("y", []byte("1")); err != nil {
		t.Fatal(err)
	}
	if m, err := quick.NextMsg(time.Minute); err != nil || string(m.Data) != "1" {
		t.Errorf("another connection: %v %v", m, err)
	}
}
