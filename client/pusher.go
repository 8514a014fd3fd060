package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// PusherConfig says how a Pusher reaches the cluster.
type PusherConfig struct {
	// Locators are base URLs of locators, such as http://locator.internal:8080.
	// Any of them can take any push; after a failure the next one is asked.
	Locators []string
	// APIKey is one of the keys that the locators know. What its entry in their file does not
	// allow, by its scopes or its users, is refused with an APIError of status 403 and code
	// forbidden; of several users each has its own.
	APIKey string
	// HTTP does the requests; default a client that keeps up to 64 connections
	// to each locator. A request may take 15 s, and what WaitAck adds.
	HTTP *http.Client
	// Attempts bounds how often a push is tried; default 4.
	Attempts int
}

// Pusher pushes messages to users. It may be used concurrently.
//
// A push is tried again only when that is safe: when it certainly was not
// accepted, or when it carries an idempotency key, as every stored push does.
type Pusher struct {
	cfg PusherConfig
}

// NewPusher checks the settings. It does no I/O.
func NewPusher(cfg PusherConfig) (*Pusher, error) {
	var err error
	if cfg.Locators, err = checkLocators(cfg.Locators); err != nil {
		return nil, err
	}
	if cfg.APIKey == "" {
		return nil, errors.New("dialring: PusherConfig.APIKey is required (it is dev in development mode)")
	}
	if cfg.Attempts <= 0 {
		cfg.Attempts = 4
	}
	if cfg.HTTP == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.MaxIdleConnsPerHost = 64
		cfg.HTTP = &http.Client{Transport: t, CheckRedirect: noRedirect}
	}
	return &Pusher{cfg: cfg}, nil
}

// noRedirect keeps a key or a token where it was meant to go: no locator redirects.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// Receipt is what became of a push.
type Receipt struct {
	ID string
	// Delivered is to how many sessions of the user it was written at once.
	Delivered int
	// Node owns the user, by the ring of Epoch. Neither is known of a Client's Send.
	Node  string
	Epoch uint64
	// Seq is the message's number in the user's log; 0: it is not stored.
	Seq uint64
	// Stored: the message is kept for the user's devices until they have it.
	Stored bool
	// Duplicate: this idempotency key was pushed before, and nothing was sent.
	Duplicate bool
	// Acked is how many sessions acknowledged it, where WaitAck asked for that.
	Acked int
}

// PushOption changes a push.
type PushOption func(*pushOptions)

type pushOptions struct {
	query url.Values
	key   string
	wait  time.Duration // for acknowledgements
}

// Ephemeral pushes to the sessions that are connected now and stores nothing.
func Ephemeral() PushOption { return func(o *pushOptions) { o.query.Set("durable", "false") } }

// ToDevice pushes to one device of the user; it is ephemeral.
func ToDevice(device string) PushOption {
	return func(o *pushOptions) { o.query.Set("device", device); o.query.Set("durable", "false") }
}

// TTL has a stored message expire after d, in milliseconds on the wire.
func TTL(d time.Duration) PushOption {
	return func(o *pushOptions) { o.query.Set("ttl_ms", strconv.FormatInt(d.Milliseconds(), 10)) }
}

// WaitAck has the push answered once a session acknowledged the stored message,
// or after timeout, of at most a minute.
func WaitAck(timeout time.Duration) PushOption {
	return func(o *pushOptions) {
		o.query.Set("wait", "ack")
		o.query.Set("timeout_ms", strconv.FormatInt(timeout.Milliseconds(), 10))
		o.wait = timeout
	}
}

// IdempotencyKey names a stored push of a user: pushed again with the same key,
// it is sent once. At most 128 bytes; default a random one for each Push, which
// makes its own retries safe.
func IdempotencyKey(key string) PushOption { return func(o *pushOptions) { o.key = key } }

func options(opts []PushOption) *pushOptions {
	o := &pushOptions{query: url.Values{}}
	for _, f := range opts {
		f(o)
	}
	return o
}

// request is what goes out for a push of data: a stored one has a key.
func (o *pushOptions) request(data any) (body []byte, h http.Header, err error) {
	if o.key != "" && o.ephemeral() {
		return nil, nil, errors.New("dialring: an IdempotencyKey is of a stored push; leave it out, or Ephemeral and ToDevice")
	}
	body, contentType, err := payload(data)
	if err != nil {
		return nil, nil, err
	}
	h = http.Header{"Content-Type": {contentType}}
	if !o.ephemeral() {
		if o.key == "" {
			o.key = randomKey()
		}
		h.Set("Idempotency-Key", o.key)
	}
	return body, h, nil
}

func (o *pushOptions) ephemeral() bool { return o.query.Get("durable") == "false" }

// Push sends data to a user: []byte as bytes, a json.RawMessage as the JSON that
// it is, byte for byte, anything else marshalled to JSON. The error is an *APIError when the
// cluster refuses the push or cannot take it now.
func (p *Pusher) Push(ctx context.Context, user string, data any, opts ...PushOption) (Receipt, error) {
	o := options(opts)
	if err := wire.CheckUser(user); err != nil {
		return Receipt{}, fmt.Errorf("dialring: %w", err)
	}
	body, h, err := o.request(data)
	if err != nil {
		return Receipt{}, err
	}
	r := pushed{durable: !o.ephemeral()}
	err = p.post(ctx, "/v1/push/"+url.PathEscape(user)+query(o.query), h, body, o, &r)
	return receipt(r.PushResult), err
}

// pushed is the answer to a push.
type pushed struct {
	wire.PushResult
	durable bool // it was to be stored
}

// check is for once: what stands between may answer 200 in a locator's place, and then nothing
// was stored.
func (r *pushed) check() error {
	if r.durable && !r.Stored || !taken(&r.PushResult) {
		return errors.New("it does not say that it has taken the message")
	}
	return nil
}

// taken tells whether a result is one: of a duplicate the first message may be gone, and its id.
func taken(r *wire.PushResult) bool { return r.ID != "" || r.Duplicate }

// Item is one message of PushMany.
type Item struct {
	User string
	Data any // goes as JSON
	// Key is the idempotency key of a stored message; default a random one.
	Key string
}

// Result is what became of one message of several.
type Result struct {
	User string
	Receipt
	Err error  // an *APIError, or nil
	Key string // of a Stream: that the message was sent with
}

// PushMany sends several messages and returns a result for each, in their
// order. More than fit into one call go in several, one after the other; if one
// of those fails as a whole, its error comes with the results up to there.
func (p *Pusher) PushMany(ctx context.Context, items []Item, opts ...PushOption) ([]Result, error) {
	o := options(opts)
	if o.key != "" {
		return nil, errors.New("dialring: IdempotencyKey is for Push; here each Item has its Key")
	}
	messages := make([][]byte, len(items))
	for i, it := range items {
		data, err := jsonOf(it.Data)
		if err != nil {
			return nil, err
		}
		key := it.Key
		if key == "" && !o.ephemeral() {
			key = randomKey()
		}
		messages[i] = message(it.User, data, key)
	}
	return p.many(ctx, messages, o)
}

// PushUsers sends one message to several users; otherwise it is like PushMany.
func (p *Pusher) PushUsers(ctx context.Context, users []string, data any, opts ...PushOption) ([]Result, error) {
	raw, err := jsonOf(data)
	if err != nil {
		return nil, err
	}
	o := options(opts)
	if !o.ephemeral() { // each user's message needs a key of its own
		items := make([]Item, len(users))
		for i, u := range users {
			items[i] = Item{User: u, Data: json.RawMessage(raw)}
		}
		return p.PushMany(ctx, items, opts...)
	}
	out := make([]Result, 0, len(users))
	for part := range slices.Chunk(users, wire.MaxUsersPerCall) {
		list, err := json.Marshal(part)
		if err != nil {
			return out, err
		}
		body := append([]byte(`{"users":`), list...)
		body = append(append(append(body, `,"data":`...), raw...), '}')
		res, err := p.call(ctx, body, len(part), o)
		if out = append(out, res...); err != nil {
			return out, err
		}
	}
	return out, nil
}

// message is one message of a call, as JSON.
func message(user string, data []byte, key string) []byte {
	b := append([]byte(`{"user":`), quote(user)...)
	b = append(append(b, `,"data":`...), data...)
	if key != "" {
		b = append(append(b, `,"id":`...), quote(key)...)
	}
	return append(b, '}')
}

func quote(s string) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string always has an encoding
	}
	return b
}

// callBytes is how large a call gets before the next one is begun; locators
// take twice that.
const callBytes = wire.MaxCallBytes / 2

func (p *Pusher) many(ctx context.Context, messages [][]byte, o *pushOptions) ([]Result, error) {
	out := make([]Result, 0, len(messages))
	for len(messages) > 0 {
		n, size := 0, 0
		for n < len(messages) && n < wire.MaxUsersPerCall && (n == 0 || size+len(messages[n]) < callBytes) {
			size += len(messages[n]) + 1
			n++
		}
		body := append([]byte(`{"messages":[`), bytes.Join(messages[:n], []byte{','})...)
		body = append(body, "]}"...)
		messages = messages[n:]
		res, err := p.call(ctx, body, n, o)
		if out = append(out, res...); err != nil {
			return out, err
		}
	}
	return out, nil
}

// pushedMany is the answer to a call with several messages.
type pushedMany struct {
	Results  []manyResult `json:"results"`
	messages int
}

func (r *pushedMany) check() error {
	if len(r.Results) != r.messages {
		return fmt.Errorf("it has %d results for %d messages", len(r.Results), r.messages)
	}
	for i, x := range r.Results {
		if x.Error == nil && !taken(&x.PushResult) {
			return fmt.Errorf("it does not say what became of message %d", i)
		}
	}
	return nil
}

// call does one call with several messages.
func (p *Pusher) call(ctx context.Context, body []byte, messages int, o *pushOptions) ([]Result, error) {
	r := pushedMany{messages: messages}
	if err := p.post(ctx, "/v1/push"+query(o.query), jsonHeader(), body, o, &r); err != nil {
		return nil, err
	}
	out := make([]Result, len(r.Results))
	for i, x := range r.Results {
		out[i] = x.result()
	}
	return out, nil
}

// manyResult is what the cluster says of one message among several.
type manyResult struct {
	wire.PushResult
	Error *wire.PushError `json:"error"`
}

func (x *manyResult) result() Result {
	r := Result{User: x.User, Receipt: receipt(x.PushResult)}
	if x.Error != nil {
		r.Err = &APIError{Code: string(x.Error.Code), Detail: x.Error.Detail}
	}
	return r
}

// BroadcastResult is what became of a broadcast.
type BroadcastResult struct {
	Nodes     int            // that took it
	Failed    []string       // nodes that did not answer
	Delivered int            // sessions that it was written to
	Counts    map[string]int // the same, by node
}

// Broadcast sends data, as JSON, to every session that is connected now.
func (p *Pusher) Broadcast(ctx context.Context, data any) (BroadcastResult, error) {
	raw, err := jsonOf(data)
	if err != nil {
		return BroadcastResult{}, err
	}
	body := append(append([]byte(`{"data":`), raw...), '}')
	var r wire.BroadcastResult
	err = p.post(ctx, "/v1/broadcast", jsonHeader(), body, options([]PushOption{Ephemeral()}), &r)
	return BroadcastResult(r), err
}

// post does a request until it is answered, as often as is safe and allowed:
// a stored push has a key, so doing it twice does no harm.
func (p *Pusher) post(ctx context.Context, path string, h http.Header, body []byte, o *pushOptions, out any) error {
	return p.do(ctx, http.MethodPost, path, h, body, o.wait, !o.ephemeral(), out)
}

// do is post with any method. repeatable: doing it twice does no harm.
func (p *Pusher) do(ctx context.Context, method, path string, h http.Header, body []byte, longer time.Duration, repeatable bool, out any) error {
	first := mrand.IntN(len(p.cfg.Locators)) // #nosec G404 -- jitter
	var told error                           // what is returned: an answer tells more than that there was none
	for n := 0; ; n++ {
		once, cancel := context.WithTimeout(ctx, requestTimeout+longer)
		err := p.once(once, method, p.cfg.Locators[(first+n)%len(p.cfg.Locators)]+path, h, body, out)
		cancel()
		wait, again := retryAfter(err, n, repeatable)
		if !again { // of one that may have been done, an earlier refusal would be a lie
			return err
		}
		if answered(err) || !answered(told) {
			told = err
		}
		switch end, ok := ctx.Deadline(); {
		case ctx.Err() != nil:
			return errors.Join(ctx.Err(), told)
		case n+1 >= p.cfg.Attempts:
			return told
		case ok && time.Until(end) < wait:
			return errors.Join(context.DeadlineExceeded, told) // it could only wait in vain
		}
		if !sleep(ctx, wait) {
			return errors.Join(ctx.Err(), told)
		}
	}
}

// answered tells whether err is what a locator said.
func answered(err error) bool { return errors.As(err, new(*APIError)) }

// requestTimeout is longer than a locator looks for the owner of a user.
const requestTimeout = 15 * time.Second

// retryAfter tells whether a failed request may be done again, and when.
func retryAfter(err error, n int, repeatable bool) (time.Duration, bool) {
	wait := mrand.N(100 * time.Millisecond << min(n, 6)) // #nosec G404 -- jitter
	var api *APIError
	if errors.As(err, &api) {
		switch api.Status {
		case http.StatusTooManyRequests, http.StatusServiceUnavailable: // not accepted, says the contract; 504 is what may have been
			return max(wait, api.RetryAfter), true
		case http.StatusInternalServerError, http.StatusBadGateway, http.StatusGatewayTimeout:
			return wait, repeatable
		}
		return 0, false
	}
	var op *net.OpError
	unsent := errors.As(err, &op) && op.Op == "dial"
	return wait, err != nil && (repeatable || unsent)
}

func (p *Pusher) once(ctx context.Context, method, u string, h http.Header, body []byte, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, u, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header = h.Clone()
	req.Header.Set("Authorization", "Bearer "+p.cfg.APIKey)
	resp, err := p.cfg.HTTP.Do(req)
	if err != nil {
		return fmt.Errorf("dialring: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return fmt.Errorf("dialring: %w", err)
	}
	switch {
	case resp.StatusCode == http.StatusNoContent && out == nil:
		return nil
	case resp.StatusCode/100 != 2:
		return apiError(resp, b)
	}
	err = json.Unmarshal(b, out)
	if c, ok := out.(interface{ check() error }); err == nil && ok {
		err = c.check()
	}
	if err != nil {
		return fmt.Errorf("dialring: %s does not answer like a locator: %w", u, err)
	}
	return nil
}

func payload(data any) (body []byte, contentType string, err error) {
	if b, ok := data.([]byte); ok {
		return b, "application/octet-stream", nil
	}
	body, err = jsonOf(data)
	return body, "application/json", err
}

// jsonOf returns data as JSON; a json.RawMessage stays as it is.
func jsonOf(data any) ([]byte, error) {
	switch d := data.(type) {
	case []byte:
		return nil, errors.New("dialring: bytes are pushed to one user at a time, with Push; here messages are JSON")
	case json.RawMessage:
		if !json.Valid(d) {
			return nil, errors.New("dialring: the json.RawMessage is not valid JSON")
		}
		return d, nil
	}
	b, err := json.Marshal(data)
	if err != nil {
		return nil, fmt.Errorf("dialring: the message is not JSON: %w", err)
	}
	return b, nil
}

func receipt(r wire.PushResult) Receipt {
	return Receipt{ID: r.ID, Delivered: r.Delivered, Node: r.Node, Epoch: r.Epoch, Seq: r.Seq, Stored: r.Stored, Duplicate: r.Duplicate, Acked: r.Acked}
}

func query(q url.Values) string {
	if len(q) == 0 {
		return ""
	}
	return "?" + q.Encode()
}

func randomKey() string {
	var b [15]byte
	_, _ = rand.Read(b[:]) // never fails, by its documentation
	return base64.RawURLEncoding.EncodeToString(b[:])
}
