package e2e

import (
	"context"
	"testing"

	"github.com/dialring/dialring/client"
	"github.com/dialring/dialring/internal/wire"
)

// A device that is new goes on from now, each time, until it acknowledges something; the
// place where it began counts.
func TestNewDeviceAnchors(t *testing.T) {
	t.Parallel()
	l, _ := threeNodes(t)
	for name, before := range map[string]int{"nobody's first": 0, "behind others": 3} {
		user := "u-" + name
		for range before {
			l.keep(t, user, `"before"`)
		}
		first := dialSince(t, l, user, "d", "")
		seq := uint64(before)
		first.welcomed(t, seq, 0, false)
		l.keep(t, user, `"one"`)
		first.message(t, seq+1, `"one"`)
		first.Close()

		// It never acknowledged anything.
		second := dialSince(t, l, user, "d", "")
		second.welcomed(t, seq+1, 0, false)
		second.write(t, wire.Ack{Type: wire.TypeAck, Cursor: second.welcome.Since})
		l.keep(t, user, `"two"`)
		second.message(t, seq+2, `"two"`)
		second.Close()

		third := dialSince(t, l, user, "d", "")
		third.welcomed(t, seq+2, 1, false)
		third.message(t, seq+2, `"two"`)
		// A place behind what is acknowledged is not taken back.
		third.write(t, wire.Ack{Type: wire.TypeAck, Cursor: second.welcome.Since})
		third.write(t, wire.Ack{Type: wire.TypeAck, Cursor: "0"})
		third.Close()
		fourth := dialSince(t, l, user, "d", "")
		fourth.welcomed(t, seq+2, 1, false)
		fourth.Close()
	}
	// The place before a user's first message.
	b := dialSince(t, l, "first", "d", "")
	b.welcomed(t, 0, 0, false)
	b.write(t, wire.Ack{Type: wire.TypeAck, Cursor: b.welcome.Since})
	l.keep(t, "first", `"one"`)
	b.message(t, 1, `"one"`)
	b.Close()
	again := dialSince(t, l, "first", "d", "")
	again.welcomed(t, 1, 1, false)
	again.message(t, 1, `"one"`)
	again.Close()
}

// An app that dies with its first message gets that message again, from the SDK.
func TestFirstMessageFails(t *testing.T) {
	t.Parallel()
	l, _ := threeNodes(t)
	run := func(handle func(m client.Message, end func())) (done chan error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		t.Cleanup(cancel)
		connected := make(chan struct{}, 16)
		c, err := client.New(client.Config{Locators: []string{"http://" + l.addr}, User: "alice", Device: "phone",
			OnMessage: func(ctx context.Context, m client.Message) { handle(m, cancel) },
			OnEvent: func(e client.Event) {
				if e.State == client.Connected {
					connected <- struct{}{}
				}
			}})
		if err != nil {
			t.Fatal(err)
		}
		done = make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		await(t, "the connection", connected)
		l.keep(t, "alice", `"x"`)
		return done
	}
	crash, began := make(chan struct{}), make(chan struct{})
	first := run(func(m client.Message, end func()) { // it never returns: nothing is acknowledged
		end()
		close(began)
		<-crash
	})
	await(t, "the first message", began)
	eventually(t, "the app is gone", func() bool { return l.presence(t, "alice")["alice"] == 0 })
	var got []uint64
	second := run(func(m client.Message, end func()) {
		if got = append(got, m.Seq); m.Seq == 2 {
			end()
		}
	})
	await(t, "both messages", second)
	if len(got) != 2 || got[0] != 1 {
		t.Errorf("after its restart the app got %v, want 1 and 2", got)
	}
	close(crash)
	await(t, "the end of the first app", first)
}
