//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/machine"
	"github.com/dialring/dialring/internal/wire"
)

// disk is a file system on an image, whose power can be cut. The image is itself on
// a file system of its own, which can be frozen: what the image then is, is what a
// disk has when the power goes. (Ext4's own shutdown, FS_IOC_SHUTDOWN, is no such
// cut: an fsync under way while it throws its journal away may answer that all is
// well, and what it was asked to keep is gone.)
type disk struct {
	t                 *testing.T
	outer, image, dir string
	cuts              int
}

// newDisk makes and mounts one of some MiB; as root only.
func newDisk(t *testing.T, mib int) *disk {
	t.Helper()
	dir := t.TempDir()
	d := &disk{t: t, outer: filepath.Join(dir, "outer"), dir: filepath.Join(dir, "mnt")}
	d.image = filepath.Join(d.outer, "image")
	err := func() error {
		if os.Geteuid() != 0 {
			return fmt.Errorf("this is not root")
		}
		base := filepath.Join(dir, "base")
		if err := errors.Join(os.Mkdir(d.outer, 0o755), os.Mkdir(d.dir, 0o755), mkfs(base, mib+64), mountImage(base, d.outer)); err != nil {
			return err
		}
		t.Cleanup(func() { _ = exec.Command("umount", "-l", d.outer).Run() })
		return errors.Join(mkfs(d.image, mib), mountImage(d.image, d.dir))
	}()
	if err != nil {
		machine.Lacks(t, "a disk on an image cannot be made: %v", err)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", d.dir).Run() })
	return d
}

func mkfs(image string, mib int) error {
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(int64(mib) << 20); err != nil {
		return err
	}
	if out, err := exec.Command("mkfs.ext4", "-q", image).CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %s", err, out)
	}
	return nil
}

func mountImage(image, dir string) error {
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		return fmt.Errorf("mount: %w: %s", err, out)
	}
	return nil
}

// cut takes what is on the disk now for all there is: what is written from then on
// waits, until off has ended who writes it, and is never seen again.
func (d *disk) cut() {
	d.t.Helper()
	d.freeze("--freeze")
	d.t.Cleanup(func() { _ = exec.Command("fsfreeze", "--unfreeze", d.outer).Run() })
}

// off has kill end the process whose disk was cut.
func (d *disk) off(kill func()) {
	d.t.Helper()
	d.cuts++
	left := fmt.Sprint(filepath.Dir(d.outer), "/left-", d.cuts)
	if out, err := exec.Command("cp", "--sparse=always", d.image, left).CombinedOutput(); err != nil {
		d.t.Fatalf("cp: %v: %s", err, out)
	}
	d.image = left
	kill()
	d.freeze("--unfreeze")
}

func (d *disk) freeze(how string) {
	d.t.Helper()
	if out, err := exec.Command("fsfreeze", how, d.outer).CombinedOutput(); err != nil {
		d.t.Fatalf("fsfreeze %s: %v: %s", how, err, out)
	}
}

// again mounts it anew, as after the power has come back. Nobody uses it any more.
func (d *disk) again() {
	d.t.Helper()
	if out, err := exec.Command("umount", d.dir).CombinedOutput(); err != nil {
		d.t.Fatalf("umount: %v: %s", err, out)
	}
	if err := mountImage(d.image, d.dir); err != nil {
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
// pushed has returned: nobody pushes any more.
func (o *onDisk) powerCut(t *testing.T, pushed func()) {
	t.Helper()
	o.disk.cut()
	o.disk.off(func() { _ = o.cmd.Process.Kill() })
	o.kill()
	pushed()
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
	t.Parallel()
	o := startOnDisk(t, 256, "always")
	wait, enough := promises(o.locatorProc)
	<-enough
	var promised map[string]uint64
	o.powerCut(t, func() { promised = wait() })
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
	t.Parallel()
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
	o.powerCut(t, func() {})
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
	heavy(t)
	t.Parallel()
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
