package inbox

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math"
	"strconv"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/dialring/dialring/internal/jsapi"
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
	// Create makes a stream whose replicas nobody has set; nil: as JetStream does.
	Create func(ctx context.Context, conf jetstream.StreamConfig) (jetstream.Stream, error)
	Keys   *Keys // for what messages carry; nil: no keys
	Log    *slog.Logger
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

// headerMeta is the header with what Entry.Meta writes.
const headerMeta = "Dialring"

// NewJetStream makes the store. It does no I/O; Run makes the streams.
func NewJetStream(o Options) (*JetStream, error) {
	js, err := jetstream.New(o.Conn, jetstream.WithDefaultTimeout(setupTimeout))
	if err != nil {
		return nil, err
	}
	if o.Create == nil || o.Replicas > 0 {
		o.Create = js.CreateStream
	}
	if o.Synced == nil {
		o.Synced = func() (string, error) { return "", nil }
	}
	if o.Keys == nil {
		o.Keys, _ = LoadKeys("", o.Log) // which reads nothing
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
			if !sleep(ctx, wait) {
				return nil
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
	p = int(h.Sum64() % uint64(n)) // #nosec G115 -- 1 to 256 partitions
	return p, s.o.Cluster + ".inbox." + strconv.Itoa(p) + "." + encode(user), leaderOnly
}

// Append implements Store.
func (s *JetStream) Append(ctx context.Context, user string, e *Entry, key string, expect uint64) (uint64, bool, error) {
	p, subject, _, err := s.place(ctx, user)
	if err != nil {
		return 0, false, err
	}
	meta, body := s.o.Keys.sealed(s.o.Cluster, user, e)
	return s.publishSafely(ctx, s.stream(p), message{subject: subject, meta: meta, key: key, expect: expect, body: body})
}

// publishSafely publishes into a stream, and waits until the message is safe there.
func (s *JetStream) publishSafely(ctx context.Context, stream string, m message) (uint64, bool, error) {
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

// message is what is published to be stored.
type message struct {
	subject string
	meta    string
	key     string // for Nats-Msg-Id; "": it has none
	expect  uint64 // the subject's last message, or anySequence
	body    []byte
	ttl     string // for Nats-TTL; "": it has none
}

const anySequence = math.MaxUint64

// envelope makes nats.go's messages of messages, one at a time. The zero envelope is
// ready.
type envelope struct {
	msg    nats.Msg
	values [4][1]string
}

// with returns m as it goes out, until the next call.
func (o *envelope) with(m *message, reply string) *nats.Msg {
	meta, expect, key, ttl := &o.values[0], &o.values[1], &o.values[2], &o.values[3]
	meta[0], expect[0], key[0], ttl[0] = m.meta, strconv.FormatUint(m.expect, 10), m.key, m.ttl
	h := o.msg.Header
	if h == nil {
		h = nats.Header{headerMeta: meta[:]}
	}
	has := func(name string, value *[1]string, there bool) {
		if there {
			h[name] = value[:]
		} else {
			delete(h, name)
		}
	}
	has(nats.MsgIdHdr, key, m.key != "")
	has(nats.MsgTTLHdr, ttl, m.ttl != "")
	has(nats.ExpectedLastSubjSeqHdr, expect, m.expect != anySequence)
	o.msg = nats.Msg{Subject: m.subject, Reply: reply, Header: h, Data: m.body}
	return &o.msg
}

// publish stores a message and waits until the server says so.
func (s *JetStream) publish(ctx context.Context, m message) (uint64, bool, error) {
	var out envelope
	r, err := s.request(ctx, out.with(&m, ""))
	if err != nil {
		return 0, false, err
	}
	return readAck(r.Data)
}

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
	e, err := s.last(ctx, s.stream(p), subject, leaderOnly)
	if err == nil {
		s.o.Keys.open(s.o.Cluster, user, &e)
	}
	return e, err
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
	e, err := s.get(ctx, s.stream(p), leaderOnly, req)
	if err != nil {
		return Entry{}, err
	}
	if e.Pos != pos {
		return Entry{}, ErrNone
	}
	s.o.Keys.open(s.o.Cluster, user, &e)
	return e, nil
}

// get asks for one message: the leader of the stream if others may be behind it, else
// any server.
func (s *JetStream) get(ctx context.Context, stream string, leaderOnly bool, req []byte) (Entry, error) {
	if leaderOnly {
		return s.fromLeader(ctx, stream, req)
	}
	return s.direct(ctx, "$JS.API.DIRECT.GET."+stream, req)
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
	return parseStored(m.Header.Get(headerMeta), pos, m.Data)
}

// fromLeader asks the leader of a stream for one message: a follower may not
// have the newest ones yet.
func (s *JetStream) fromLeader(ctx context.Context, stream string, req []byte) (Entry, error) {
	r, err := s.request(ctx, &nats.Msg{Subject: jsapi.MsgGet + stream, Data: req})
	if err != nil {
		return Entry{}, err
	}
	got, err := jsapi.ParseMsgGet(r.Data)
	switch {
	case jsapi.Is(err, jsapi.CodeNoMessage):
		return Entry{}, ErrNone
	case errors.Is(err, jsapi.ErrNothing):
		return Entry{}, errMeta
	case err != nil:
		return Entry{}, err
	}
	h, err := nats.DecodeHeadersMsg(got.Hdrs)
	if err != nil {
		return Entry{}, errMeta
	}
	return parseStored(h.Get(headerMeta), got.Seq, got.Data)
}

// Read implements Store, by a batched direct get.
func (s *JetStream) Read(ctx context.Context, user string, pos uint64) ([]Entry, error) {
	p, subject, _, err := s.place(ctx, user)
	if err != nil {
		return nil, err
	}
	l, err := s.readFrom(ctx, s.stream(p), subject, pos, chunkMessages, Chunk)
	for i := range l {
		s.o.Keys.open(s.o.Cluster, user, &l[i])
	}
	return l, err
}

// readFrom reads messages of a subject, which may have a wildcard, from pos on: so many,
// of so many bytes.
func (s *JetStream) readFrom(ctx context.Context, stream, subject string, pos uint64, most, size int) ([]Entry, error) {
	inbox := s.o.Conn.NewInbox()
	sub, err := s.o.Conn.SubscribeSync(inbox)
	if err != nil {
		return nil, err
	}
	defer func() { _ = sub.Unsubscribe() }()
	req := fmt.Appendf(nil, `{"seq":%d,"batch":%d,"max_bytes":%d,"next_by_subj":%q}`, max(pos, 1), most, size, subject)
	if err := s.o.Conn.PublishRequest("$JS.API.DIRECT.GET."+stream, inbox, req); err != nil {
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
	if e.sealed.key != "" { // only what messages carry is sealed
		return Cursor{}, 0, errMeta
	}
	c, err := ParseCursor(e.ID)
	return c, e.Pos, err
}

// SetPosition implements Store.
func (s *JetStream) SetPosition(ctx context.Context, user, device string, c Cursor, rev uint64) (uint64, error) {
	rev, _, err := s.publish(ctx, s.position(user, device, c, rev))
	return rev, err
}

// position is the message that notes a position.
func (s *JetStream) position(user, device string, c Cursor, rev uint64) message {
	e := Entry{ID: c.String()}
	return message{subject: s.positionSubject(user, device), meta: e.Meta(), expect: rev}
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
		if _, _, err := s.publishSafely(ctx, s.stream(p), message{subject: subject, meta: e.Meta(), expect: anySequence}); err != nil {
			return fmt.Errorf("partition %d: %w", p, err)
		}
	}
	return nil
}
