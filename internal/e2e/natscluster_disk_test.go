//go:build linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// The disk of one of three is full: pushes go on, by the two others. When it has room
// again, its NATS is started anew and has all that it missed.
func TestNATSClusterDiskFull(t *testing.T) {
	heavy(t)
	t.Parallel()
	d := newDisk(t, 48)
	g := newTrio(t)
	g.dirs[1] = filepath.Join(d.dir, "data")
	for i := range g.l {
		g.start(t, i)
	}
	t.Cleanup(func() { g.l[1].kill() }) // before the disk goes
	nodesOf(t, g.l[0], g.natsURL, "DIALRING_INBOX_PARTITIONS=2")
	for _, l := range g.l {
		l.waitReady(t)
	}
	g.waitReplicas(t, 3)
	load := durableLoad(t, g.l[0], g.l[2])
	load.pushed(t, 100)
	ballast := filepath.Join(d.dir, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	for b := make([]byte, 64<<10); err == nil; {
		_, err = f.Write(b)
	}
	f.Close()
	t.Log("the disk is full:", err)
	began := time.Now()
	big := `"` + strings.Repeat("x", 60_000) + `"`
	eventually(t, "the NATS on it has lost a write", func() bool {
		g.l[0].tryStore(fmt.Sprint("filler-", time.Now().UnixNano()%50), big)
		return strings.Contains(strings.ToLower(g.l[1].text()), "critical write error") || strings.Contains(g.l[1].text(), "DISABLED")
	})
	t.Log("it has lost a write after", time.Since(began))
	load.pushed(t, 300)
	t.Log("300 pushes more are answered after", time.Since(began))
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	g.l[1].event(t, "nats_mended")
	load.pushed(t, 100)
	load.arrived(t)
	g.waitReplicas(t, 3)
}

// These do not run beside others: a process in a namespace of its own would hold on to
// a disk that is to be mounted again.

// onDisks is a trio whose stores are on disks, and three nodes.
func onDisks(t *testing.T, dataSync string) (*trio, []*disk) {
	t.Helper()
	g := newTrio(t, "DIALRING_DATA_SYNC="+dataSync)
	var disks []*disk
	for i := range g.l {
		disks = append(disks, newDisk(t, 128))
		g.dirs[i] = filepath.Join(disks[i].dir, "data")
	}
	for i := range g.l {
		g.start(t, i)
		t.Cleanup(func() { g.l[i].kill() }) // before the disks go
	}
	nodesOf(t, g.l[0], g.natsURL, "DIALRING_INBOX_PARTITIONS=2")
	for _, l := range g.l {
		l.waitReady(t)
	}
	for i := range 10 { // of all nodes and streams
		g.l[0].stores(t, fmt.Sprint("early-", i), "1")
	}
	g.waitReplicas(t, 3)
	return g, disks
}

// promises pushes to some users at a time until pushes fail, and tells how many of each
// were answered as stored; enough is closed when there are some hundreds.
func promises(l *locatorProc) (wait func() map[string]uint64, enough chan struct{}) {
	enough = make(chan struct{})
	promised, total := map[string]uint64{}, 0
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range 10 {
		user := fmt.Sprint("user-", i)
		wg.Go(func() {
			for i := 1; ; i++ {
				status, r := l.tryStore(user, fmt.Sprint(i))
				if status != 200 {
					return // the power is off
				}
				mu.Lock()
				promised[user] = r.Seq
				if total++; total == 500 {
					close(enough)
				}
				mu.Unlock()
			}
		})
	}
	return func() map[string]uint64 { wg.Wait(); return promised }, enough
}

// The power of all three is cut at once, in the middle of pushes. With DATA_SYNC=always
// everything that was answered as stored is there: a majority had it on the disk.
func TestNATSClusterPowerCut(t *testing.T) {
	heavy(t)
	t.Parallel()
	l, promised := cutAll(t, "always")
	for user, n := range promised {
		b := dialHeard(t, l, user)
		if b.welcome.Head < n || b.welcome.Gap {
			t.Fatalf("%s was promised %d messages: %+v", user, n, b.welcome)
		}
		for i := uint64(1); i <= n; i++ {
			b.message(t, i, fmt.Sprint(i))
		}
	}
	l.keep(t, "after", "1")
}

// With DATA_SYNC=interval it may take what was answered, as with one server; the
// cluster goes on with what there is.
func TestNATSClusterPowerCutInterval(t *testing.T) {
	heavy(t)
	t.Parallel()
	l, promised := cutAll(t, "interval")
	lost := 0
	for user, n := range promised {
		l.stores(t, user, `"new"`)
		if b := dialHeard(t, l, user); b.welcome.Head <= n {
			lost++
		}
	}
	t.Logf("%d of %d users lost messages", lost, len(promised))
	if lost == 0 {
		t.Error("nothing was lost: the disks were not cut off, or this is no test of it any more")
	}
}

// cutAll cuts the power of all three in the middle of pushes, starts them again, and
// returns one and what was promised.
func cutAll(t *testing.T, dataSync string) (*locatorProc, map[string]uint64) {
	t.Helper()
	g, disks := onDisks(t, dataSync)
	wait, enough := promises(g.l[0])
	await(t, "some hundreds are stored", enough)
	for _, d := range disks {
		d.cut()
	}
	for i, d := range disks {
		d.off(func() { _ = g.l[i].cmd.Process.Kill() })
	}
	for _, l := range g.l {
		l.kill()
	}
	promised := wait()
	for i, d := range disks {
		d.again()
		g.start(t, i)
	}
	for _, l := range g.l {
		l.waitReady(t)
	}
	g.l[0].stores(t, "probe", "1")
	return g.l[0], promised
}

// dialHeard dials for all that is kept, until the node knows the new locator's key and
// the store answers.
func dialHeard(t *testing.T, l *locatorProc, user string) *bare {
	t.Helper()
	eventually(t, "the nodes are heard again", func() bool {
		for _, n := range l.ring(t).Nodes {
			if n.LastSeenMS < 0 {
				return false
			}
		}
		return true
	})
	var b *bare
	eventually(t, "the store is back", func() bool {
		b = dialSince(t, l, user, "d", "0")
		return b.welcome.Head > 0 || b.welcome.Gap
	})
	return b
}
