package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net/http"
	"sync"

	"github.com/dialring/dialring/internal/wire"
)

// Stream is for services that push steadily: one request on which messages go out and
// results come back, in any order. Its methods may be called concurrently.
type Stream struct {
	ctx       context.Context
	ephemeral bool
	body      *io.PipeWriter
	results   chan Result

	mu   sync.Mutex // a line at a time
	n    int
	done bool

	waiting sync.Mutex
	items   map[int]Item
	err     error // why it ended; set before results is closed
}

// Stream opens a stream, until ctx ends or Close. The options are those of all its
// messages: Ephemeral, TTL, ToDevice. The caller must take Results all the time: when
// too many are not taken, Push waits.
func (p *Pusher) Stream(ctx context.Context, opts ...PushOption) (*Stream, error) {
	o := options(opts)
	if o.key != "" || o.wait > 0 {
		return nil, errors.New("dialring: IdempotencyKey and WaitAck do not go with a stream; each Item has its Key")
	}
	r, w := io.Pipe()
	at := p.cfg.Locators[mrand.IntN(len(p.cfg.Locators))] // #nosec G404 -- jitter
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, at+"/v1/push"+query(o.query), r)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	req.Header.Set("Authorization", "Bearer "+p.cfg.APIKey)
	resp, err := p.cfg.HTTP.Do(req)
	if err != nil {
		return nil, fmt.Errorf("dialring: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // what has come is enough
		return nil, apiError(resp, b)
	}
	s := &Stream{ctx: ctx, ephemeral: o.ephemeral(), body: w, results: make(chan Result, 256), items: map[int]Item{}}
	go s.read(resp.Body)
	return s, nil
}

// Push sends a message. It waits while the cluster takes no more. What becomes of the message is
// told by Results; after an error of Push, or for those without a result when the stream
// has ended, it is not known, and only stored messages, whose Key is in their Result, may be
// pushed again safely.
func (s *Stream) Push(it Item) error {
	data, err := jsonOf(it.Data)
	if err != nil {
		return err
	}
	if err := wire.CheckUser(it.User); err != nil {
		return fmt.Errorf("dialring: %w", err)
	}
	switch {
	case it.Key == "" && !s.ephemeral:
		it.Key = randomKey()
	case it.Key != "" && s.ephemeral:
		return errors.New("dialring: a Key is of a stored message")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done {
		return io.ErrClosedPipe
	}
	s.n++
	s.waiting.Lock()
	s.items[s.n] = it
	s.waiting.Unlock()
	_, err = s.body.Write(append(message(it.User, data, it.Key), '\n'))
	return err
}

// Close says that no more messages come; the results of those that were sent still do.
func (s *Stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done = true
	return s.body.Close()
}

// Results are what became of messages, in any order. The channel is closed when the
// stream has ended: after Close and the last result, or by a failure, which Err tells.
func (s *Stream) Results() <-chan Result { return s.results }

// Unanswered are the messages that have no result, with the keys that they were sent with.
// It is complete when Results is closed.
func (s *Stream) Unanswered() []Item {
	s.waiting.Lock()
	defer s.waiting.Unlock()
	out := make([]Item, 0, len(s.items))
	for _, it := range s.items {
		out = append(out, it)
	}
	return out
}

// Err tells, when Results is closed, why the stream ended; nil after Close and the last
// result.
func (s *Stream) Err() error {
	s.waiting.Lock()
	defer s.waiting.Unlock()
	return s.err
}

func (s *Stream) read(body io.ReadCloser) {
	defer close(s.results)
	defer body.Close()
	err := s.lines(body)
	s.waiting.Lock()
	if err == nil && len(s.items) > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		s.err = fmt.Errorf("dialring: the stream of pushes ended: %w", err)
	}
	s.waiting.Unlock()
	_ = s.body.CloseWithError(io.ErrClosedPipe) // Push does not wait any more
}

func (s *Stream) lines(body io.Reader) error {
	in := bufio.NewScanner(body)
	in.Buffer(make([]byte, 4096), 64<<10)
	for in.Scan() {
		var line struct {
			Line int `json:"line"`
			manyResult
		}
		if err := json.Unmarshal(in.Bytes(), &line); err != nil {
			return err
		}
		if line.Line == 0 { // about the stream
			if line.Error == nil {
				return errors.New("a line that is no result")
			}
			return &APIError{Code: string(line.Error.Code), Detail: line.Error.Detail}
		}
		r := line.result()
		s.waiting.Lock()
		r.Key = s.items[line.Line].Key
		delete(s.items, line.Line)
		s.waiting.Unlock()
		select {
		case s.results <- r:
		case <-s.ctx.Done():
			return s.ctx.Err()
		}
	}
	return in.Err()
}
