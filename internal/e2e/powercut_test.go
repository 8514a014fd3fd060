//go:build linux

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/dialring/dialring/internal/wire"
)

// disk is a file system on an image, whose power can be cut.
type disk struct {
	t          *testing.T
	image, dir string
}

// newDisk makes and mounts one of some MiB; as root only.
func newDisk(t *testing.T, mib int) *disk {
	t.Helper()
	dir := t.TempDir()
	d := &disk{t, filepath.Join(dir, "image"), filepath.Join(dir, "mnt")}
	err := func() error {
		if os.Geteuid() != 0 {
			return fmt.Errorf("this is not root")
		}
		if err := os.Mkdir(d.dir, 0o755); err != nil {
			return err
		}
		f, err := os.Create(d.image)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := f.Truncate(int64(mib) << 20); err != nil {
			return err
		}
		if out, err := exec.Command("mkfs.ext4", "-q", d.image).CombinedOutput(); err != nil {
			return fmt.Errorf("mkfs.ext4: %w: %s", err, out)
		}
		return d.mount()
	}()
	switch {
	case err != nil && os.Getenv("DIALRING_FULL") == "1":
		t.Fatalf("DIALRING_FULL=1, and a disk on an image cannot be made: %v", err)
	case err != nil:
		t.Skipf("a disk on an image cannot be made: %v", err)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", d.dir).Run() })
	return d
}

func (d *disk) mount() error {
	if out, err := exec.Command("mount", "-o", "loop", d.image, d.dir).CombinedOutput(); err != nil {
		return fmt.Errorf("mount: %w: %s", err, out)
	}
	return nil
}

// cut has the file system forget all that is not on the disk, at once: what is
// written from then on fails.
func (d *disk) cut() {
	d.t.Helper()
	f, err := os.Open(d.dir)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	const shutdown = 0x8004587d // FS_IOC_SHUTDOWN: _IOR('X', 125, __u32)
	how := [1]uint32{2}         // without flushing the journal
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), shutdown, uintptr(unsafe.Pointer(&how[0]))); e != 0 {
		d.t.Fatalf("FS_IOC_SHUTDOWN: %v", e)
	}
}

// again mounts it anew, as after the power has come back. Nobody uses it any more.
func (d *disk) again() {
	d.t.Helper()
	if out, err := exec.Command("umount", d.dir).CombinedOutput(); err != nil {
		d.t.Fatalf("umount: %v: %s", err, out)
	}
	if err := d.mount(); err != nil {
		d.t.Fatal(err)
	}
}

// onDisk is a locator whose store is on a disk, with three nodes.
type onDisk struct {
	*locatorProc
	disk  *disk
	begin func() *locatorProc
}

func startOnDisk(t *testing.T, mib int, dataSync string) *onDisk {
	t.Helper()
	o := &onDisk{disk: newDisk(t, mib)}
	o.begin = restartable(t, filepath.Join(o.disk.dir, "data"), "DIALRING_DATA_SYNC="+dataSync)
	o.locatorProc = o.begin()
	nodesOf(t, o.locatorProc, o.nats)
	t.Cleanup(func() { o.kill() }) // before the disk goes
	return o
}

// powerCut cuts the power of the disk, and has the locator started again when
// nobody pushes any more.
func (o *onDisk) powerCut(t *testing.T, pushing *sync.WaitGroup) {
	t.Helper()
	o.disk.cut()
	o.kill()
	pushing.Wait()
	o.disk.again()
	o.locatorProc = o.begin()
	o.waitMembers(t, "ws-1", "ws-2", "ws-3")
}

// comesBack dials until the store answers.
func (o *onDisk) comesBack(t *testing.T, user, since string) *bare {
	t.Helper()
	// A node that has not found NATS again does not know the new locator's key.
	eventually(t, "the nodes are heard again", func() bool {
		for _, n := range o.ring(t).Nodes {
			if n.LastSeenMS < 0 {
				return false
			}
		}
		return true
	})
	var b *bare
	eventually(t, "the store is back", func() bool {
		b = dialSince(t, o.locatorProc, user, "d", since)
		return b.welcome.Head > 0 || b.welcome.Gap
	})
	return b
}

// The power of the store's disk is cut in the middle of pushes. With DATA_SYNC=always,
// which is the default, everything that was answered as stored is there.
func TestInboxPowerCut(t *testing.T) {
	o := startOnDisk(t, 256, "always")
	var mu sync.Mutex
	var wg sync.WaitGroup
	l := o.locatorProc
	promised, total, enough := map[string]uint64{}, 0, make(chan struct{})
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
	<-enough
	o.powerCut(t, &wg)
	for user, n := range promised {
		b := o.comesBack(t, user, "0")
		if b.welcome.Head < n || b.welcome.Gap {
			t.Fatalf("%s was promised %d messages: %+v", user, n, b.welcome)
		}
		for i := uint64(1); i <= n; i++ {
			b.message(t, i, fmt.Sprint(i))
		}
	}
	o.keep(t, "after", "1")
}

// With DATA_SYNC=interval a power cut may take what was answered as stored. Who saw
// some of that is told so, and goes on with what there is.
func TestInboxPowerCutInterval(t *testing.T) {
	o := startOnDisk(t, 256, "interval")
	cursors := map[string]string{}
	for i := range 10 {
		user := fmt.Sprint("user-", i)
		b := dialSince(t, o.locatorProc, user, "d", "")
		for i := uint64(1); i <= 5; i++ {
			o.keep(t, user, fmt.Sprint(i))
			cursors[user] = b.message(t, i, fmt.Sprint(i)).Cursor
		}
	}
	o.powerCut(t, &sync.WaitGroup{})
	lost := 0
	for user, cursor := range cursors {
		eventually(t, "it is stored again", func() bool {
			status, r := o.tryStore(user, `"new"`)
			return status == 200 && r.Stored
		})
		b := o.comesBack(t, user, cursor)
		if b.welcome.Head > 5 && !b.welcome.Gap { // nothing of this user's was lost
			continue
		}
		lost++
		if !b.welcome.Gap || b.welcome.Pending == 0 {
			t.Errorf("%s: %+v of a log that has lost messages", user, b.welcome)
		}
	}
	t.Logf("%d of %d users lost messages", lost, len(cursors))
	if lost == 0 {
		t.Error("nothing was lost: the disk was not cut off, or this is no test of it any more")
	}
}

// The disk of the store is full: stored pushes are refused within a bound, which
// readiness shows, all else goes on; and when there is room again, it recovers.
func TestInboxDiskFull(t *testing.T) {
	o := startOnDisk(t, 24, "interval")
	b := dialSince(t, o.locatorProc, "alice", "d", "")
	ballast := filepath.Join(o.disk.dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	big := `"` + strings.Repeat("x", 60_000) + `"`
	var status int
	for n := 0; n < 2000 && status != 503; n++ {
		status, _ = o.tryStore(fmt.Sprint("filler-", n%50), big)
	}
	if status != 503 {
		t.Fatal("the disk did not fill up")
	}
	begin := time.Now()
	st, _, p := o.store(t, "alice", `"refused"`, "", "refused-1")
	if st != 503 || p.Code != wire.CodeStoreUnavailable || p.RetryAfter == 0 || time.Since(begin) > 10*time.Second {
		t.Errorf("with a full disk: %d %+v after %s", st, p, time.Since(begin))
	}
	owner := o.locate(t, "alice", "").URL
	ready := func() int {
		s, _ := call(t, "GET", strings.TrimSuffix("http"+strings.TrimPrefix(owner, "ws"), "/v1/ws")+"/readyz", "")
		return s
	}
	eventually(t, "readiness shows it", func() bool { return ready() == 503 })
	if r := o.push(t, "alice", `"ephemeral"`); r.Delivered != 1 {
		t.Errorf("an ephemeral push: %+v", r)
	}
	b.expectMessage(t, `"ephemeral"`)
	late := dialSince(t, o.locatorProc, "alice", "late", "0") // sessions go on, new ones too
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it recovers", func() bool {
		st, r, _ := o.store(t, "alice", `"stored"`, "", "stored-1")
		return st == 200 && r.Stored
	})
	b.expectMessage(t, `"stored"`)
	late.expectMessage(t, `"stored"`)
	eventually(t, "readiness shows it", func() bool { return ready() == 200 })
}

// expectMessage reads up to the message with this data.
func (b *bare) expectMessage(t *testing.T, data string) {
	t.Helper()
	for {
		var m wire.Message
		if b.expectType(t, wire.TypeMessage, &m); string(m.Data) == data {
			return
		}
	}
}
