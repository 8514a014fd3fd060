package inbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"math"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Options of a JetStream store.
type Options struct {
	Conn       *nats.Conn
	Cluster    string
	Partitions int // streams; counts only when the cluster's first node makes them; 0: eight in a NATS cluster, else one
	Replicas   int // of each stream; 0: three in a NATS cluster, else one
	Limits     Limits
	// Synced tells which server acknowledges, if that is safe only after Sync; "" if
	// it is safe as it is.
	Synced func() (server string, err error)
	// Sync returns when what that server has acknowledged is safe, and an error if
	// another one has taken its place.
	Sync func(ctx context.Context, server string, streams []string) error
	Log  *slog.Logger
}

// JetStream is the Store. The messages of a user are one subject of one of
// several streams, by a hash of the user:
//
//	stream <cluster>_inbox_<p>, subjects <cluster>.inbox.<p>.<user, encoded>
//	stream <cluster>_positions, subjects <cluster>.position.<user>.<device>, both encoded
//
// What makes the owner the only writer is the header
// Nats-Expected-Last-Subject-Sequence; what makes repeats harmless is Nats-Msg-Id,
// which JetStream compares across the whole stream (Key has the user in it).
type JetStream struct {
	o       Options
	js      jetstream.JetStream
	missing chan struct{} // wakes Run: a stream is not there

	known chan struct{} // closed when partitions are

	mu         sync.Mutex
	partitions int // 0: not known yet
	leaderOnly bool

	acks  acks
	syncs syncs
}

// acks are the appends that wait for their acknowledgement, by the last part of the
// subject that it comes to.
type acks struct {
	mu      sync.Mutex
	prefix  string // of the subjects
	last    uint64
	waiting map[string]*waiting
	closed  bool
	queue   []*nats.Msg    // to be published
	wake    chan struct{}  // the publisher
	calls   sync.WaitGroup // of done that are under way
}

type waiting struct {
	done     func(pos uint64, dup bool, err error)
	deadline time.Time
	stream   string
	server   string // that it was published to, if that wants a sync
}

var (
	errNoAnswer = errors.New("JetStream did not answer in time")
	errBroken   = errors.New("the connection to NATS broke")
)

// expireEvery is how often it is looked whose time is over.
const expireEvery = 100 * time.Millisecond

// AppendAsync implements AsyncStore.
func (s *JetStream) AppendAsync(user string, e *Entry, key string, expect uint64, deadline time.Time, done func(pos uint64, dup bool, err error)) {
	select {
	case <-s.known:
	default:
		done(0, false, errors.New("the streams of the inbox are not there yet"))
		return
	}
	p, subject, _ := s.placeKnown(user)
	reply, err := s.acks.add(&waiting{done: done, deadline: deadline, stream: s.stream(p)})
	if err != nil {
		done(0, false, err)
		return
	}
	m := message(subject, e, key, expect)
	m.Reply = reply
	s.acks.mu.Lock()
	s.acks.queue = append(s.acks.queue, m)
	s.acks.mu.Unlock()
	select {
	case s.acks.wake <- struct{}{}:
	default:
	}
}

// publishLoop publishes what AppendAsync queued, until ctx ends: nats.go may hold up
// whoever publishes while it dials, or while the server takes no bytes.
func (s *JetStream) publishLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.acks.wake:
		}
		s.acks.mu.Lock()
		queue := s.acks.queue
		s.acks.queue = nil
		s.acks.mu.Unlock()
		server, err := s.o.Synced()
		for _, m := range s.acks.to(server, queue) {
			err := err
			if err == nil {
				err = s.o.Conn.PublishMsg(m)
			}
			if err != nil {
				if w, ok := s.acks.take(m.Reply); ok {
					w.done(0, false, err)
					s.acks.calls.Done()
				}
			}
		}
	}
}

// listen subscribes to the acknowledgements.
func (s *JetStream) listen() error {
	prefix := s.o.Conn.NewInbox() + "."
	_, err := s.o.Conn.Subscribe(prefix+"*", s.acknowledged)
	s.acks.mu.Lock()
	defer s.acks.mu.Unlock()
	s.acks.prefix, s.acks.waiting = prefix, map[string]*waiting{}
	return err
}

// add has an acknowledgement waited for, and returns the subject for it.
func (a *acks) add(w *waiting) (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed || a.waiting == nil {
		return "", errBroken
	}
	a.last++
	reply := a.prefix + strconv.FormatUint(a.last, 36)
	a.waiting[reply] = w
	return reply, nil
}

// take takes who waits for an acknowledgement; the caller ends the call with Done.
func (a *acks) take(reply string) (*waiting, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w, ok := a.waiting[reply]
	if ok {
		a.calls.Add(1)
		delete(a.waiting, reply)
	}
	return w, ok
}

// acknowledged takes the answer to an append.
func (s *JetStream) acknowledged(m *nats.Msg) {
	w, ok := s.acks.take(m.Subject)
	if !ok {
		return // it came too late
	}
	defer s.acks.calls.Done()
	if len(m.Data) == 0 && m.Header.Get(statusHeader) == statusNoResponders {
		s.Wake()
		w.done(0, false, nats.ErrNoResponders)
		return
	}
	pos, dup, err := readAck(m.Data)
	if err != nil || w.server == "" {
		w.done(pos, dup, err)
		return
	}
	s.syncs.add(w.server, w.stream, func(err error) { w.done(pos, dup, err) })
}

const statusNoResponders = "503"

// to notes where messages are published. It drops those whose time is over: somebody
// was told so.
func (a *acks) to(server string, queue []*nats.Msg) []*nats.Msg {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := queue[:0]
	for _, m := range queue {
		if w := a.waiting[m.Reply]; w != nil {
			w.server = server
			out = append(out, m)
		}
	}
	return out
}

// fail ends those whose time is over at now, or all, with err.
func (a *acks) fail(now time.Time, all bool, err error) {
	a.mu.Lock()
	var out []*waiting
	for reply, w := range a.waiting {
		if all || now.After(w.deadline) {
			delete(a.waiting, reply)
			a.calls.Add(1)
			out = append(out, w)
		}
	}
	a.mu.Unlock()
	for _, w := range out {
		w.done(0, false, err)
		a.calls.Done()
	}
}

// expire ends appends whose time is over, until ctx ends, and then all. No callback
// is under way any more when it returns.
func (s *JetStream) expire(ctx context.Context) {
	t := time.NewTicker(expireEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			s.acks.mu.Lock()
			s.acks.closed = true
			s.acks.mu.Unlock()
			s.acks.fail(time.Time{}, true, errBroken)
			s.acks.calls.Wait()
			return
		case now := <-t.C:
			s.acks.fail(now, false, errNoAnswer)
		}
	}
}

// Reconnected is to be called when NATS was connected again: acknowledgements that
// were under way are lost, and the streams may be.
func (s *JetStream) Reconnected() {
	s.acks.fail(time.Time{}, true, errBroken)
	s.Wake()
}

const (
	headerMeta    = "Dialring"
	metaPartition = "dialring.partitions"
	// positionsAge is how long a device's position is kept after it last changed.
	positionsAge = 90 * 24 * time.Hour
	setupTimeout = 5 * time.Second
	setupPause   = 100 * time.Millisecond
	setupMost    = 5 * time.Second
)

// NewJetStream makes the store. It does no I/O; Run makes the streams.
func NewJetStream(o Options) (*JetStream, error) {
	js, err := jetstream.New(o.Conn, jetstream.WithDefaultTimeout(setupTimeout))
	if err != nil {
		return nil, err
	}
	if o.Synced == nil {
		o.Synced = func() (string, error) { return "", nil }
	}
	return &JetStream{o: o, js: js, missing: make(chan struct{}, 1), known: make(chan struct{}), acks: acks{wake: make(chan struct{}, 1)}, syncs: syncs{Sync: o.Sync}}, nil
}

// Run makes the streams where they are missing: now, whenever Wake says so, and
// when a call found one missing, until ctx ends.
func (s *JetStream) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	if err := s.listen(); err != nil {
		return err
	}
	wg.Go(func() { s.expire(ctx) })
	wg.Go(func() { s.publishLoop(ctx) })
	for {
		for wait := setupPause; ; wait = min(2*wait, setupMost) {
			err := s.setup(ctx)
			if err == nil {
				break
			}
			if s.o.Conn.IsConnected() && ctx.Err() == nil {
				s.o.Log.Warn("the streams of the inbox cannot be set up; trying again", "event", "inbox_setup", "error", err)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(wait):
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.missing:
		}
	}
}

// Wait returns when no goroutine is left. Nothing may be appended any more.
func (s *JetStream) Wait() { s.syncs.wg.Wait() }

// Wake has the streams looked at: NATS may have come back without its data.
func (s *JetStream) Wake() {
	select {
	case s.missing <- struct{}{}:
	default:
	}
}

func (s *JetStream) stream(p int) string { return s.o.Cluster + "_inbox_" + strconv.Itoa(p) }
func (s *JetStream) positions() string   { return s.o.Cluster + "_positions" }

func (s *JetStream) config(p, partitions int) jetstream.StreamConfig {
	return jetstream.StreamConfig{Name: s.stream(p), Description: "dialring: users' messages", Subjects: []string{fmt.Sprintf("%s.inbox.%d.*", s.o.Cluster, p)},
		Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld, Storage: jetstream.FileStorage, Replicas: s.replicas(), AllowDirect: true,
		MaxMsgsPerSubject: int64(s.o.Limits.Messages), MaxAge: s.o.Limits.Age, Duplicates: min(s.o.Limits.Window, s.o.Limits.Age),
		Metadata: map[string]string{metaPartition: strconv.Itoa(partitions)}}
}

func (s *JetStream) replicas() int {
	switch {
	case s.o.Replicas > 0:
		return s.o.Replicas
	case s.o.Conn.ConnectedClusterName() != "":
		return 3
	}
	return 1
}

// setup makes what is missing and brings the limits up to date.
func (s *JetStream) setup(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	// The first stream says how many there are: that is fixed when it is made.
	partitions := s.o.Partitions
	switch {
	case partitions > 0:
	case s.o.Conn.ConnectedClusterName() != "":
		partitions = 8
	default:
		partitions = 1
	}
	first, err := s.ensure(ctx, s.config(0, partitions))
	if err != nil {
		return err
	}
	if n, err := strconv.Atoi(first.Config.Metadata[metaPartition]); err == nil && n > 0 {
		partitions = n
	}
	if s.o.Partitions > 0 && partitions != s.o.Partitions {
		s.o.Log.Warn("the inbox has another number of partitions than DIALRING_INBOX_PARTITIONS says; that is fixed when a cluster is made, and the setting has no effect",
			"event", "inbox_partitions", "partitions", partitions, "setting", s.o.Partitions)
	}
	for p := 1; p < partitions; p++ {
		if _, err := s.ensure(ctx, s.config(p, partitions)); err != nil {
			return err
		}
	}
	positions := jetstream.StreamConfig{Name: s.positions(), Description: "dialring: how far devices have read",
		Subjects: []string{s.o.Cluster + ".position.*.*"}, Storage: jetstream.FileStorage, Replicas: s.replicas(), AllowDirect: true,
		MaxMsgsPerSubject: 1, MaxAge: max(positionsAge, 2*s.o.Limits.Age), Duplicates: time.Second}
	if positions.Replicas == 1 { // not worth a sync of the disk for each, where the server does that
		positions.PersistMode = jetstream.AsyncPersistMode
	}
	if _, err := s.ensure(ctx, positions); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaderOnly = first.Config.Replicas > 1
	if s.partitions == 0 {
		s.partitions = partitions
		close(s.known)
	}
	return nil
}

// ensure makes a stream, or changes the limits of one that is there.
func (s *JetStream) ensure(ctx context.Context, want jetstream.StreamConfig) (*jetstream.StreamInfo, error) {
	st, err := s.js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		st, err = s.js.CreateStream(ctx, want)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // another node was faster
			st, err = s.js.Stream(ctx, want.Name)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", want.Name, err)
	}
	info := st.CachedInfo()
	have := info.Config
	if have.MaxMsgsPerSubject == want.MaxMsgsPerSubject && have.MaxAge == want.MaxAge && have.Duplicates == want.Duplicates &&
		(s.o.Replicas == 0 || have.Replicas == want.Replicas) {
		return info, nil
	}
	change := have
	change.Metadata = maps.Clone(have.Metadata)
	change.MaxMsgsPerSubject, change.MaxAge, change.Duplicates = want.MaxMsgsPerSubject, want.MaxAge, want.Duplicates
	if s.o.Replicas > 0 {
		change.Replicas = want.Replicas
	}
	s.o.Log.Info("the limits of a stream are changed to what this node was set to", "event", "inbox_limits", "stream", want.Name,
		"messages", want.MaxMsgsPerSubject, "age", want.MaxAge, "window", want.Duplicates, "replicas", change.Replicas)
	if st, err = s.js.UpdateStream(ctx, change); err != nil {
		return nil, fmt.Errorf("stream %s: %w", want.Name, err)
	}
	return st.CachedInfo(), nil
}

// place tells the partition and the subject of a user, once the streams are there.
func (s *JetStream) place(ctx context.Context, user string) (p int, subject string, leaderOnly bool, err error) {
	select {
	case <-s.known:
	case <-ctx.Done():
		return 0, "", false, errors.New("the streams of the inbox are not there yet")
	}
	p, subject, leaderOnly = s.placeKnown(user)
	return p, subject, leaderOnly, nil
}

func (s *JetStream) placeKnown(user string) (p int, subject string, leaderOnly bool) {
	s.mu.Lock()
	n, leaderOnly := s.partitions, s.leaderOnly
	s.mu.Unlock()
	h := fnv.New64a()
	_, _ = h.Write([]byte(user))
	p = int(h.Sum64() % uint64(n))
	return p, s.o.Cluster + ".inbox." + strconv.Itoa(p) + "." + encode(user), leaderOnly
}

// Append implements Store.
func (s *JetStream) Append(ctx context.Context, user string, e *Entry, key string, expect uint64) (uint64, bool, error) {
	p, subject, _, err := s.place(ctx, user)
	if err != nil {
		return 0, false, err
	}
	return s.publishSafely(ctx, s.stream(p), message(subject, e, key, expect))
}

// publishSafely publishes into a stream, and waits until the message is safe there.
func (s *JetStream) publishSafely(ctx context.Context, stream string, m *nats.Msg) (uint64, bool, error) {
	server, err := s.o.Synced() // before: what another run acknowledges is not synced by it
	if err != nil {
		return 0, false, err
	}
	pos, dup, err := s.publish(ctx, m)
	if err != nil || server == "" {
		return pos, dup, err
	}
	safe := make(chan error, 1)
	s.syncs.add(server, stream, func(err error) { safe <- err })
	select {
	case err = <-safe:
	case <-ctx.Done():
		err = ctx.Err()
	}
	return pos, dup, err
}

func message(subject string, e *Entry, key string, expect uint64) *nats.Msg {
	return &nats.Msg{Subject: subject, Data: e.Body, Header: nats.Header{headerMeta: {e.Meta()}, nats.MsgIdHdr: {key},
		nats.ExpectedLastSubjSeqHdr: {strconv.FormatUint(expect, 10)}}}
}

// publish stores a message and waits until the server says so.
func (s *JetStream) publish(ctx context.Context, m *nats.Msg) (uint64, bool, error) {
	r, err := s.request(ctx, m)
	if err != nil {
		return 0, false, err
	}
	return readAck(r.Data)
}

// readAck reads an acknowledgement, or why there is none.
func readAck(b []byte) (uint64, bool, error) {
	if pos, dup, ok := parseAck(b); ok {
		return pos, dup, nil
	}
	var ack struct {
		Seq       uint64 `json:"seq"`
		Duplicate bool   `json:"duplicate"`
		Error     *struct {
			Code        int    `json:"err_code"`
			Description string `json:"description"`
		} `json:"error"`
	}
	if err := json.Unmarshal(b, &ack); err != nil {
		return 0, false, fmt.Errorf("the answer of JetStream cannot be read: %w", err)
	}
	switch {
	case ack.Error == nil && ack.Seq > 0:
		return ack.Seq, ack.Duplicate, nil
	case ack.Error == nil:
		return 0, false, errors.New("JetStream does not say where the message is")
	case ack.Error.Code == errWrongLast || ack.Error.Code == errWrongLastText:
		return 0, false, ErrConflict
	}
	return 0, false, fmt.Errorf("JetStream refuses the message: %s (%d)", ack.Error.Description, ack.Error.Code)
}

// parseAck reads a JetStream acknowledgement as the server writes it; anything
// else is left to encoding/json, which takes as long as all the rest.
func parseAck(b []byte) (pos uint64, dup, ok bool) {
	_, b, ok = bytes.Cut(b, []byte(`,"seq":`))
	if !ok {
		return 0, false, false
	}
	for len(b) > 0 && b[0] >= '0' && b[0] <= '9' && pos < math.MaxUint64/20 {
		pos, b = 10*pos+uint64(b[0]-'0'), b[1:]
	}
	switch string(b) {
	case "}":
	case `,"duplicate": true}`:
		dup = true
	default:
		return 0, false, false
	}
	return pos, dup, pos > 0
}

// JetStream's error codes for an unexpected last sequence.
const (
	errWrongLast     = 10071
	errWrongLastText = 10164
)

func (s *JetStream) request(ctx context.Context, m *nats.Msg) (*nats.Msg, error) {
	r, err := s.o.Conn.RequestMsgWithContext(ctx, m)
	if errors.Is(err, nats.ErrNoResponders) {
		s.Wake() // the stream has no leader, or is gone
	}
	return r, err
}

// Last implements Store.
func (s *JetStream) Last(ctx context.Context, user string) (Entry, error) {
	p, subject, leaderOnly, err := s.place(ctx, user)
	if err != nil {
		return Entry{}, err
	}
	return s.last(ctx, s.stream(p), subject, leaderOnly)
}

func (s *JetStream) last(ctx context.Context, stream, subject string, leaderOnly bool) (Entry, error) {
	if leaderOnly {
		return s.fromLeader(ctx, stream, fmt.Appendf(nil, `{"last_by_subj":%q}`, subject))
	}
	return s.direct(ctx, "$JS.API.DIRECT.GET."+stream+"."+subject, nil)
}

// At implements Store.
func (s *JetStream) At(ctx context.Context, user string, pos uint64) (Entry, error) {
	p, subject, leaderOnly, err := s.place(ctx, user)
	if err != nil {
		return Entry{}, err
	}
	// The next of the user from there on: nobody reads another one's message.
	req := fmt.Appendf(nil, `{"seq":%d,"next_by_subj":%q}`, pos, subject)
	var e Entry
	if leaderOnly {
		e, err = s.fromLeader(ctx, s.stream(p), req)
	} else {
		e, err = s.direct(ctx, "$JS.API.DIRECT.GET."+s.stream(p), req)
	}
	if err == nil && e.Pos != pos {
		return Entry{}, ErrNone
	}
	return e, err
}

// direct asks any server that has the stream for one message.
func (s *JetStream) direct(ctx context.Context, subject string, req []byte) (Entry, error) {
	r, err := s.request(ctx, &nats.Msg{Subject: subject, Data: req})
	if err != nil {
		return Entry{}, err
	}
	return entryOf(r)
}

// Statuses of a direct get.
const (
	statusHeader = "Status"
	statusNone   = "404"
	statusEnd    = "204"
)

func entryOf(m *nats.Msg) (Entry, error) {
	switch st := m.Header.Get(statusHeader); st {
	case "":
	case statusNone:
		return Entry{}, ErrNone
	default:
		return Entry{}, fmt.Errorf("JetStream: %s %s", st, m.Header.Get("Description"))
	}
	pos, err := strconv.ParseUint(m.Header.Get(nats.JSSequence), 10, 64)
	if err != nil {
		return Entry{}, errMeta
	}
	return ParseMeta(m.Header.Get(headerMeta), pos, m.Data)
}

// fromLeader asks the leader of a stream for one message: a follower may not
// have the newest ones yet.
func (s *JetStream) fromLeader(ctx context.Context, stream string, req []byte) (Entry, error) {
	r, err := s.request(ctx, &nats.Msg{Subject: "$JS.API.STREAM.MSG.GET." + stream, Data: req})
	if err != nil {
		return Entry{}, err
	}
	var got struct {
		Message *struct {
			Seq  uint64 `json:"seq"`
			Hdrs []byte `json:"hdrs"`
			Data []byte `json:"data"`
		} `json:"message"`
		Error *struct {
			Code        int    `json:"err_code"`
			Description string `json:"description"`
		} `json:"error"`
	}
	switch err := json.Unmarshal(r.Data, &got); {
	case err != nil:
		return Entry{}, fmt.Errorf("the answer of JetStream cannot be read: %w", err)
	case got.Error != nil && got.Error.Code == errNoMessage:
		return Entry{}, ErrNone
	case got.Error != nil:
		return Entry{}, fmt.Errorf("JetStream: %s (%d)", got.Error.Description, got.Error.Code)
	case got.Message == nil:
		return Entry{}, errMeta
	}
	h, err := nats.DecodeHeadersMsg(got.Message.Hdrs)
	if err != nil {
		return Entry{}, errMeta
	}
	return ParseMeta(h.Get(headerMeta), got.Message.Seq, got.Message.Data)
}

const errNoMessage = 10037

// Read implements Store, by a batched direct get.
func (s *JetStream) Read(ctx context.Context, user string, pos uint64) ([]Entry, error) {
	p, subject, _, err := s.place(ctx, user)
	if err != nil {
		return nil, err
	}
	inbox := s.o.Conn.NewInbox()
	sub, err := s.o.Conn.SubscribeSync(inbox)
	if err != nil {
		return nil, err
	}
	defer func() { _ = sub.Unsubscribe() }()
	req := fmt.Appendf(nil, `{"seq":%d,"batch":%d,"max_bytes":%d,"next_by_subj":%q}`, max(pos, 1), chunkMessages, Chunk, subject)
	if err := s.o.Conn.PublishRequest("$JS.API.DIRECT.GET."+s.stream(p), inbox, req); err != nil {
		return nil, err
	}
	var out []Entry
	for {
		m, err := sub.NextMsgWithContext(ctx)
		if errors.Is(err, nats.ErrNoResponders) {
			s.Wake()
		}
		if err != nil {
			return nil, err
		}
		if m.Header.Get(statusHeader) == statusEnd {
			return out, nil
		}
		e, err := entryOf(m)
		switch {
		case errors.Is(err, ErrNone):
			return out, nil
		case err != nil:
			return nil, err
		}
		out = append(out, e)
	}
}

func (s *JetStream) positionSubject(user, device string) string {
	return s.o.Cluster + ".position." + encode(user) + "." + encode(device)
}

// Position implements Store.
func (s *JetStream) Position(ctx context.Context, user, device string) (Cursor, uint64, error) {
	_, _, leaderOnly, err := s.place(ctx, user)
	if err != nil {
		return Cursor{}, 0, err
	}
	e, err := s.last(ctx, s.positions(), s.positionSubject(user, device), leaderOnly)
	if err != nil {
		return Cursor{}, 0, err
	}
	c, err := ParseCursor(e.ID)
	return c, e.Pos, err
}

// SetPosition implements Store.
func (s *JetStream) SetPosition(ctx context.Context, user, device string, c Cursor, rev uint64) (uint64, error) {
	e := Entry{ID: c.String()}
	rev, _, err := s.publish(ctx, &nats.Msg{Subject: s.positionSubject(user, device), Header: nats.Header{headerMeta: {e.Meta()},
		nats.ExpectedLastSubjSeqHdr: {strconv.FormatUint(rev, 10)}}})
	return rev, err
}

// Check implements Store: a canary in each stream that it would write to.
func (s *JetStream) Check(ctx context.Context) error {
	if _, _, _, err := s.place(ctx, ""); err != nil {
		return err
	}
	s.mu.Lock()
	n := s.partitions
	s.mu.Unlock()
	for p := range n {
		e := Entry{ID: "canary"}
		subject := fmt.Sprintf("%s.inbox.%d._", s.o.Cluster, p) // of no user; the limits trim it
		if _, _, err := s.publishSafely(ctx, s.stream(p), &nats.Msg{Subject: subject, Header: nats.Header{headerMeta: {e.Meta()}}}); err != nil {
			return fmt.Errorf("partition %d: %w", p, err)
		}
	}
	return nil
}
