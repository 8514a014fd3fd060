package natsd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
)

// JetStream's own sync_interval "always" syncs the disk once for each message, one
// after the other: a few hundred a second. Here messages that were acknowledged, and
// so are in the files, are synced together: whoever was promised that its message
// survives a power cut waits for one sync that many share (group commit). JetStream
// itself syncs every second, which is for its other files, and for blocks that it
// has rewritten to win back room.

// syncer syncs the files of streams.
type syncer struct {
	dir string // the store's

	mu      sync.Mutex // one sync at a time
	streams map[string]*syncedStream
}

// syncedStream is what of a stream's files is known to be on the disk.
type syncedStream struct {
	blocks map[string]fs.FileInfo // as they were when they were synced last
}

var streamName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`)

// Sync returns when everything that JetStream has acknowledged for these streams
// before is on the disk.
func (s *Server) Sync(streams []string) error {
	s.syncer.mu.Lock()
	defer s.syncer.mu.Unlock()
	var g errgroup.Group
	for _, name := range streams {
		if !streamName.MatchString(name) {
			return fmt.Errorf("%q is no stream", name)
		}
		if s.syncer.streams == nil {
			s.syncer.streams = map[string]*syncedStream{}
		}
		st := s.syncer.streams[name]
		if st == nil {
			st = &syncedStream{}
			s.syncer.streams[name] = st
		}
		dir := filepath.Join(s.syncer.dir, "jetstream", "$G", "streams", name)
		g.Go(func() error { return st.sync(s.syncer.dir, dir) })
	}
	return g.Wait()
}

// sync syncs the blocks that have changed, and, when there are new ones, their
// directory. The first time all of the stream's files are synced, and the
// directories that lead to them.
func (st *syncedStream) sync(root, dir string) error {
	if st.blocks == nil {
		if err := syncTree(root, dir); err != nil {
			return err
		}
	}
	msgs := filepath.Join(dir, "msgs")
	list, err := os.ReadDir(msgs)
	if err != nil {
		return err
	}
	now := map[string]fs.FileInfo{}
	created := false
	for _, e := range list {
		if !strings.HasSuffix(e.Name(), ".blk") {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was removed meanwhile
		}
		if err != nil {
			return err
		}
		was := st.blocks[e.Name()]
		if was == nil || !os.SameFile(was, info) {
			created = true
		} else if was.Size() == info.Size() && was.ModTime().Equal(info.ModTime()) {
			now[e.Name()] = was
			continue
		}
		if err := syncFile(filepath.Join(msgs, e.Name())); err != nil {
			return err
		}
		now[e.Name()] = info
	}
	if created {
		if err := syncFile(msgs); err != nil {
			return err
		}
	}
	st.blocks = now
	return nil
}

// syncTree syncs all below dir, and the directories from root to it.
func syncTree(root, dir string) error {
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return syncFile(path)
	})
	for parent := filepath.Dir(dir); err == nil; parent = filepath.Dir(parent) {
		if err = syncFile(parent); parent == root {
			break
		}
	}
	return err
}

// syncFile syncs a file or directory; one that is gone needs no sync.
func syncFile(path string) error {
	f, err := os.Open(path) // #nosec G304 -- in the operator's DATA_DIR
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
