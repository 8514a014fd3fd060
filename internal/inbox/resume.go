package inbox

import (
	"context"
	"errors"
	"time"
)

// Start is from where a session goes on.
type Start struct {
	From Cursor // behind it; the session's position
	// Gap: the cursor that was asked for is not of this log, or something after it
	// is not kept any more. Then From is in front of the oldest message.
	Gap bool
	// First are the first messages after From, perhaps all.
	First []Entry
	// Pending counts the messages after From, up to the head, that will come. Behind
	// First it takes all for such; Count looks.
	Pending uint64
}

// ErrBehind: the part of the store that was asked does not know the newest messages
// yet, or head is older than it. Ask again.
var ErrBehind = errors.New("the store and the head of the log do not fit together yet")

// Find tells from where a session resumes that had everything up to since, in a
// log whose end is head (by Last, or the log's only writer).
//
//	since is head ----------------------------------------> nothing to do
//	its message is kept, and is the one it was -----------> what follows it
//	the one after it is kept, and follows just this one --> that one, and what follows
//	anything else ----------------------------------------> gap: all that is kept
//
// since the start of the log asks for all that is kept; that is a gap as well if
// some of it is not.
func Find(ctx context.Context, s Store, user string, since, head Cursor, now time.Time) (Start, error) {
	if since.Seq == head.Seq && since.Tag == head.Tag {
		return Start{From: head}, nil
	}
	// What lies behind the head, or numbers beyond it, is of another log.
	if since.Seq < head.Seq && head.Pos > 0 && since.Pos < head.Pos {
		l, err := s.Read(ctx, user, since.Pos)
		switch {
		case err != nil:
			return Start{}, err
		case len(l) == 0:
			return Start{}, ErrBehind
		case since.Seq > 0 && l[0].Cursor == since:
			if len(l) == 1 {
				return Start{}, ErrBehind
			}
			return start(since, l[1:], head, now)
		case l[0].Seq == since.Seq+1 && l[0].Prev == since.Tag:
			return start(since, l, head, now)
		}
	}
	if head.Pos == 0 { // nothing is kept
		return Start{From: head, Gap: true}, nil
	}
	l, err := s.Read(ctx, user, 1)
	switch {
	case err != nil:
		return Start{}, err
	case len(l) == 0:
		return Start{}, ErrBehind
	}
	st, err := start(before(&l[0]), l, head, now)
	st.Gap = true
	return st, err
}

// before is a cursor in front of a message. It names the message before it by its
// tag, and a place in the stream behind which the message is the next.
func before(e *Entry) Cursor {
	if e.Seq == 1 {
		return Cursor{}
	}
	return Cursor{Seq: e.Seq - 1, Pos: e.Pos - 1, Tag: e.Prev}
}

// start tells what follows from, up to head: the store may have more, whose
// acknowledgement is still under way.
func start(from Cursor, l []Entry, head Cursor, now time.Time) (Start, error) {
	for len(l) > 0 && l[len(l)-1].Seq > head.Seq {
		l = l[:len(l)-1]
	}
	if len(l) == 0 {
		return Start{}, ErrBehind
	}
	st := Start{From: from, First: l}
	for i := range l {
		if !l[i].Never(now) {
			st.Pending++
		}
	}
	if last := l[len(l)-1].Seq; last < head.Seq {
		st.Pending += head.Seq - last
	}
	return st, nil
}

// Count makes Pending exact, also behind First, for as long as ctx allows, and up
// to some MiB of messages.
func (st *Start) Count(ctx context.Context, s Store, user string, head Cursor, now time.Time) {
	if len(st.First) == 0 {
		return
	}
	last := st.First[len(st.First)-1].Cursor
	for range countChunks {
		if last.Seq >= head.Seq {
			return
		}
		l, err := s.Read(ctx, user, last.Pos+1)
		if err != nil || len(l) == 0 {
			return
		}
		for i := range l {
			if l[i].Seq <= head.Seq && l[i].Never(now) {
				st.Pending--
			}
		}
		last = l[len(l)-1].Cursor
	}
}

const countChunks = 16
