package cluster

import (
	"slices"
	"testing"
	"time"
)

// abc starts nodes a, b and c and waits until they are the ring of all.
func (b *bubble) abc() (x, y, z *syncNode) {
	b.Helper()
	x, y, z = b.node("a"), b.node("b"), b.node("c")
	b.until(3*second, "a b c", b.locs...)
	b.agree(b.locs...)
	return
}

// Whatever happens to the nodes: the three locators make one history of it.
func TestSyncHistory(t *testing.T) {
	inBubble(t, func(b *bubble) {
		_, nb, nc := b.abc()
		nd := b.node("d")
		b.set(nc, func(n *syncNode) { n.stuck = true }) // it has sessions to move
		b.until(3*second, "a b c d *", b.locs...)
		b.quiet(5 * second)
		b.agree(b.locs...)
		b.set(nc, func(n *syncNode) { n.stuck = false })
		if took := b.until(second, "a b c d", b.locs...); took > 4*tick {
			t.Errorf("the handoff ended %s after the last report", took)
		}
		b.quiet(5 * second)

		b.kill(nb)
		b.locs[0].keeper.Failed("b") // its push was refused
		if took := b.until(second, "a c d", b.locs...); took > 300*time.Millisecond {
			t.Errorf("the killed node is out after %s", took)
		}
		b.agree(b.locs...)
		b.quiet(5 * second)

		b.drain(nc)
		b.until(second, "a d -c *", b.locs...)
		b.quiet(10 * second)
		b.set(nc, func(n *syncNode) { n.stuck = false })
		b.until(second, "a d", b.locs...)
		b.quiet(2 * second) // all have that ring: who has not is probed without being silent
		b.kill(nc)
		b.kill(nd) // nobody has evidence: its silence tells
		if took := b.until(6*second, "a", b.locs...); took < silentAfter-BeatInterval {
			t.Errorf("the silent node is out after %s", took)
		}
		b.agree(b.locs...)
		b.quiet(time.Minute)
		want := []string{"join [a b c]", "join [d]", "handoff [d]", "crash [b]", "leave [c]", "handoff [c]", "crash [d]"}
		if got := b.reasons(); !slices.Equal(got, want) {
			t.Errorf("changes %q, want %q", got, want)
		}
	})
}

// All want to publish at the same instant, many times.
func TestSyncManyChanges(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.abc()
		for range 10 {
			d := b.node("d")
			b.until(10*time.Minute, "a b c d", b.locs...) // it is held off after some time
			b.kill(d)
			for _, l := range b.locs {
				l.keeper.Failed("d")
			}
			b.until(second, "a b c", b.locs...)
			b.agree(b.locs...)
		}
		if n := b.srv.conflicts.Load(); n == 0 {
			t.Error("no two of them ever published at once")
		} else {
			t.Logf("%d were too late", n)
		}
	})
}

// NATS is away: everybody goes on with the ring, and what happened meanwhile is
// published after.
func TestSyncBusDown(t *testing.T) {
	inBubble(t, func(b *bubble) {
		_, nb, _ := b.abc()
		b.srv.down()
		b.quiet(10 * second)
		b.kill(nb)
		b.locs[1].keeper.Failed("b")
		b.quiet(20 * second)
		for _, l := range b.locs {
			if got := shape(l.rings.Current()); got != "a b c" {
				t.Errorf("%s goes by %q", l.id, got)
			}
			if _, doubted := l.keeper.Doubted("a"); doubted {
				t.Errorf("%s doubts a node that answers", l.id)
			}
		}
		b.srv.up()
		// First it has to hear something again: until then it may be the locator itself.
		if took := b.until(5*second, "a c", b.locs...); took > BeatInterval+300*time.Millisecond {
			t.Errorf("published %s after the bus came back", took)
		}
		b.agree(b.locs...)
		b.quiet(time.Minute)
		if got, want := b.reasons(), []string{"join [a b c]", "crash [b]"}; !slices.Equal(got, want) {
			t.Errorf("changes %q, want %q", got, want)
		}
	})
}

// One locator is cut off while the others go on.
func TestSyncKeeperCutOff(t *testing.T) {
	inBubble(t, func(b *bubble) {
		_, nb, _ := b.abc()
		cut, others := b.locs[2], b.locs[:2]
		cut.bus.down()
		b.node("d")
		b.until(3*second, "a b c d", others...)
		b.kill(nb)
		cut.keeper.Failed("b")
		others[0].keeper.Failed("b")
		b.until(second, "a c d", others...)
		b.quiet(10 * second)
		b.agree(others...)
		if got := shape(cut.rings.Current()); got != "a b c" {
			t.Errorf("who is cut off goes by %q", got)
		}
		cut.bus.up()
		if took := b.until(second, "a c d", cut); took > 300*time.Millisecond {
			t.Errorf("it has the ring %s after it is connected again", took)
		}
		b.agree(b.locs...)
		b.quiet(time.Minute)
		if got, want := b.reasons(), []string{"join [a b c]", "join [d]", "handoff [d]", "crash [b]"}; !slices.Equal(got, want) {
			t.Errorf("changes %q, want %q", got, want)
		}
		// It is as good as the others again.
		for _, l := range others {
			l.bus.down()
		}
		b.node("e")
		b.until(6*second, "a c d e", cut)
		for _, l := range others {
			l.bus.up()
		}
		b.until(second, "a c d e", b.locs...)
		b.agree(b.locs...)
	})
}

// Two of three cannot reach a node whose heartbeats come: it is out for all.
func TestSyncMostCannotReach(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.abc()
		b.block(mute, b.locs[0], "c")
		b.locs[0].keeper.Failed("c")
		b.quiet(20 * second) // one alone
		if got := b.locs[0].keeper.Suspects(); !slices.Equal(got, []string{"c1"}) {
			t.Errorf("it suspects %q", got)
		}
		b.block(mute, b.locs[1], "c")
		b.locs[1].keeper.Failed("c")
		if took := b.until(10*second, "a b", b.locs...); took < suspectAfter {
			t.Errorf("out after %s", took)
		}
		b.agree(b.locs...)
		for i, l := range b.locs {
			if _, in := l.rings.Current().Find("c"); in {
				t.Errorf("locator %d goes by it", i)
			}
		}
		for _, l := range b.locs[:2] {
			b.block(answers, l, "c")
		}
		b.until(30*second, "a b c", b.locs...)
		b.agree(b.locs...)
		b.quiet(time.Minute)
	})
}
