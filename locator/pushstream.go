package locator

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/labstack/echo/v4"
	"golang.org/x/sync/semaphore"

	"github.com/dialring/dialring/internal/httpd"
	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/route"
	"github.com/dialring/dialring/internal/wire"
)

// A stream of pushes: POST /v1/push with Content-Type application/x-ndjson. A line in is
// one message, a line out what became of one, in any order; line tells which.
//
//	service                                locator
//	  | {"user":"a","data":…,"id":"k1"} -->|--> the owner of a
//	  | {"user":"b","data":…} ------------>|--> the owner of b
//	  |<-- {"line":2,"user":"b","seq":…} --|
//	  |<-- {"line":1,"user":"a",…} --------|
//
// Messages to one user go one after the other, in the order of their lines.
//
// So many messages, or bytes, may be without their result; then nothing more is read
// until some have one: the service's writes wait.

const (
	ndjson = "application/x-ndjson"
	// streamWindow is how many messages of a stream may be under way.
	streamWindow = 1024
	// streamIdle is how long a stream may be silent.
	streamIdle = 2 * time.Minute
	// streamWrite bounds one write to a service that does not read its results.
	streamWrite = 30 * time.Second
	// lineExtra is what a line may have beside its data.
	lineExtra = 4096
)

// streamLine is one line in.
type streamLine struct {
	manyMessage
	Ref json.RawMessage `json:"ref"` // comes back with the result
}

// streamed is a message of a stream on its way.
type streamed struct {
	job
	line int
	user string
	ref  json.RawMessage
	size int64
}

// pushStream is one such call.
type pushStream struct {
	l       *Locator
	r       *http.Request
	key     *apiKey // what it may do, by
	keys    *keySet // these
	rc      *http.ResponseController
	q       pushQuery
	in      *bufio.Reader
	slots   chan struct{}       // a token for each message under way
	window  *semaphore.Weighted // of their bytes
	results chan *streamed
	order   route.Ordered
	line    int
}

func isStream(r *http.Request) bool {
	t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && t == ndjson
}

func (l *Locator) pushStream(c echo.Context) error {
	r := c.Request()
	q, p := readPushQuery(r)
	switch {
	case p != nil:
		return p
	case q.group != "":
		return badRequest("group does not go with a stream")
	case q.wait > 0:
		return badRequest("wait=ack does not go with a stream: its results come at once")
	case r.Header.Get("Idempotency-Key") != "":
		return badRequest("an Idempotency-Key does not go with a stream: each line has its own, in id")
	}
	l.metrics.calls.WithLabelValues("stream").Inc()
	rc := http.NewResponseController(c.Response())
	if err := rc.EnableFullDuplex(); err != nil {
		return wire.NewProblem(http.StatusHTTPVersionNotSupported, wire.CodeInvalidRequest, "a stream needs HTTP/1.1")
	}
	s := &pushStream{l: l, r: r, key: keyOf(c), rc: rc, q: q, in: bufio.NewReaderSize(&idleReader{r.Body, rc, l.front}, l.cfg.MaxMessageBytes+lineExtra),
		slots: make(chan struct{}, streamWindow), window: semaphore.NewWeighted(max(callWindow, int64(l.cfg.MaxMessageBytes))), results: make(chan *streamed, streamWindow)}
	h := c.Response().Header()
	h.Set("Content-Type", ndjson)
	h.Set("Cache-Control", "no-store")
	c.Response().WriteHeader(http.StatusOK)
	if err := rc.Flush(); err != nil {
		return nil // nobody is there any more
	}
	// When the locator is to stop, no more lines are read.
	stop := context.AfterFunc(l.front, func() { _ = rc.SetReadDeadline(time.Now()) })
	defer stop()
	var writer sync.WaitGroup
	writer.Go(func() { s.write(c.Response()) })
	end := s.read()
	for range streamWindow { // all have their results
		s.slots <- struct{}{}
	}
	close(s.results)
	writer.Wait()
	if end != nil {
		s.say(c.Response(), appendProblem([]byte(`{`), end))
	}
	return nil
}

// idleReader reads a body whose each piece may take streamIdle, until front ends.
type idleReader struct {
	r     io.Reader
	rc    *http.ResponseController
	front context.Context
}

func (i *idleReader) Read(b []byte) (int, error) {
	_ = i.rc.SetReadDeadline(time.Now().Add(streamIdle))
	if i.front.Err() != nil { // its own call may have come just before
		_ = i.rc.SetReadDeadline(time.Now())
	}
	return i.r.Read(b)
}

// read reads lines until the service ends them; a problem is why it stopped before.
func (s *pushStream) read() *wire.Problem {
	for {
		b, err := s.in.ReadSlice('\n')
		long := errors.Is(err, bufio.ErrBufferFull)
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = s.in.ReadSlice('\n')
		}
		if len(bytes.TrimSpace(b)) > 0 && (err == nil || errors.Is(err, io.EOF)) {
			if p := s.stillAllowed(); p != nil {
				return p
			}
			s.line++
			s.slots <- struct{}{}
			s.push(b, long)
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			return nil
		case s.l.front.Err() != nil:
			return wire.NewProblem(http.StatusServiceUnavailable, wire.CodeDraining, "this locator is about to stop: lines behind %d were not read; send them to another", s.line)
		case errors.Is(err, os.ErrDeadlineExceeded):
			return wire.NewProblem(http.StatusRequestTimeout, wire.CodeInvalidRequest, "nothing came for %s: lines behind %d were not read", streamIdle, s.line)
		default:
			return wire.NewProblem(http.StatusBadRequest, wire.CodeInvalidRequest, "the body cannot be read: lines behind %d were not", s.line)
		}
	}
}

// stillAllowed looks whether the key is good as it was when the stream began: a stream may
// last for days, and a key that was taken away must not push until then.
func (s *pushStream) stillAllowed() *wire.Problem {
	keys := s.l.keys.set.Load()
	if keys == s.keys {
		return nil
	}
	s.keys = keys
	token, _ := httpd.Bearer(s.r)
	var p *wire.Problem
	if s.key = keys.of(token); s.key == nil {
		p = unknownKey()
		s.l.refusedKey(s.r, keyUnknown, noName)
	} else if !s.key.may(wire.ScopePush) {
		p = noScope(wire.ScopePush)
		s.l.refusedKey(s.r, keyScope, s.key.name, "scope", wire.ScopePush)
	}
	if p != nil {
		p.Detail += "; it was good when the stream began, and lines behind " + strconv.Itoa(s.line) + " were not read"
	}
	return p
}

// push sends one line on its way; its result comes, whatever it is.
func (s *pushStream) push(b []byte, long bool) {
	m := &streamed{line: s.line, job: job{key: s.key, start: time.Now()}}
	m.Durable = s.q.durable
	m.Ended = func(*route.Job) { s.results <- m } // as many as there are slots find room
	var in streamLine
	switch err := wire.DecodeJSON(b, &in); {
	case long:
		s.l.limited(limitBody)
		m.Problem = wire.NewProblem(http.StatusRequestEntityTooLarge, wire.CodeTooLarge, "the line is too long: a message has at most %d bytes", s.l.cfg.MaxMessageBytes)
	case err != nil:
		m.Problem = badRequest("the line: %v", err)
	case wire.CheckRef(in.Ref) != nil:
		m.Problem = badRequest("%v", wire.CheckRef(in.Ref))
	default:
		m.user, m.ref = in.User, in.Ref
		m.Problem = s.l.checkMessage(s.r, s.key, in.manyMessage)
		if m.Problem == nil && wire.BrokenID(in.User, wire.HalfEscapes(b)) {
			m.Problem = badRequest("the user id has an escape that is no character")
		}
	}
	if m.Problem != nil {
		s.results <- m
		return
	}
	m.size = int64(len(in.Data))
	if err := s.window.Acquire(s.l.ctx, m.size); err != nil {
		m.size = 0
		m.Problem = wire.NewProblem(http.StatusServiceUnavailable, wire.CodeDraining, "this locator is about to stop; ask another")
		s.results <- m
		return
	}
	m.Call = peer.Call{Op: peer.OpPush, User: in.User, Device: s.q.device, ID: s.l.ids.Next(), JSON: true, Body: in.Data, Durable: s.q.durable, TTL: s.q.ttl, Key: in.ID}
	s.order.Send(s.l.ctx, &s.l.router.Router, &m.Job)
}

// write writes results until there are no more. It gives their slots back even if
// nobody takes them.
func (s *pushStream) write(w http.ResponseWriter) {
	b := make([]byte, 0, 512)
	for m := range s.results {
		b = append(b[:0], `{"line":`...)
		b = strconv.AppendInt(b, int64(m.line), 10)
		if len(m.ref) > 0 {
			b = append(append(b, `,"ref":`...), m.ref...)
		}
		res, p := s.l.result(&m.job)
		if p != nil {
			b = append(b, `,"user":`...)
			b = wire.AppendString(b, m.user)
			b = appendProblem(append(b, ','), p)
		} else {
			res.User = m.user
			rest := wire.AppendPushResult(make([]byte, 0, 256), &res)
			b = append(append(b, ','), rest[1:]...)
		}
		if m.size > 0 {
			s.window.Release(m.size)
		}
		s.say(w, b)
		<-s.slots
	}
}

// say writes a line, and sends what was written if no more is about to come.
func (s *pushStream) say(w http.ResponseWriter, b []byte) {
	_ = s.rc.SetWriteDeadline(time.Now().Add(streamWrite))
	if _, err := w.Write(append(b, '\n')); err == nil && len(s.results) == 0 {
		_ = s.rc.Flush()
	}
}

// appendProblem appends the field error, and the end of the object.
func appendProblem(b []byte, p *wire.Problem) []byte {
	b = append(b, `"error":{"code":`...)
	b = wire.AppendString(b, string(p.Code))
	b = append(b, `,"detail":`...)
	b = wire.AppendString(b, p.Detail)
	return append(b, `}}`...)
}
