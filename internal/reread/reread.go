// Package reread is for files that programs read again when they change: certificates and
// keys, which operators replace while the program runs.
package reread

import (
	"context"
	"io"
	"os"
	"time"
)

const (
	// Look is how often a file is looked at.
	Look = 2 * time.Second
	// Again is how many looks pass until the log hears again of a file that cannot be used.
	Again = int(10 * time.Minute / Look)
)

// Watch calls load every Look until ctx ends, and failed with each error, which is the nth in
// a row. The first may be the middle of a change, and says nothing.
func Watch(ctx context.Context, load func() error, failed func(err error, nth int)) {
	t := time.NewTicker(Look)
	defer t.Stop()
	nth := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if err := load(); err != nil {
			nth++
			failed(err, nth)
		} else {
			nth = 0
		}
	}
}

// Say tells whether the log hears of the nth failure in a row: of the second, and of one each
// ten minutes after that.
func Say(nth int) bool { return nth%Again == 2 }

// Read reads a file of at most limit bytes, or one more, which is too many.
func Read(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name) // #nosec G304 -- the operator names the file
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit+1))
}
