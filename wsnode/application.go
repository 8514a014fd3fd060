package wsnode

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/wire"
)

// application is who receives what clients send without naming a user.
type application interface {
	// ask hands a message over, and returns what the application answered: JSON, or
	// nothing; dup says that it had the message before, where that is known. It ends with
	// ctx.
	ask(ctx context.Context, m *wire.AppMessage) (answer json.RawMessage, dup bool, p *wire.Problem)
	// close lets go of connections.
	close()
}

// Values of DIALRING_APP beside the URL of a webhook.
const (
	appNATS      = "nats"
	appJetStream = "jetstream"
)

// newApplication makes the application of the settings, nil if there is none.
func (n *Node) newApplication() application {
	switch app := n.cfg.App; app {
	case "":
		return nil
	case appNATS:
		return natsApp{n}
	case appJetStream:
		return keptApp{n}
	default:
		return &webhook{url: app, busy: func() { n.limited(limitApplication) }, secret: []byte(n.cfg.AppSecret), limit: n.cfg.MaxMessageBytes, slots: newSlots(n.cfg.AppConcurrency), log: n.log, warn: rate.NewLimiter(1, 1),
			client: &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
				Transport: &http.Transport{MaxIdleConnsPerHost: n.cfg.AppConcurrency, MaxConnsPerHost: n.cfg.AppConcurrency, IdleConnTimeout: time.Minute, Proxy: http.ProxyFromEnvironment}}}
	}
}

// noApplication says that the application did not take or not answer a message.
func noApplication(format string, args ...any) *wire.Problem {
	return wire.NewProblem(http.StatusServiceUnavailable, wire.CodeNoApplication, format, args...)
}

func encodeMessage(m *wire.AppMessage) []byte {
	head := *m
	head.Data = nil
	return wire.WithData(head, m.Data)
}

// natsApp is an application that answers requests on a subject of NATS.
type natsApp struct{ n *Node }

func (a natsApp) close() {}

func (a natsApp) ask(ctx context.Context, m *wire.AppMessage) (json.RawMessage, bool, *wire.Problem) {
	data, refused, err := a.n.nats.AskApplication(ctx, encodeMessage(m))
	switch {
	case errors.Is(err, cluster.ErrNobody):
		return nil, false, noApplication("nobody of the application is there")
	case err != nil:
		a.n.log.Warn("the application does not answer", "event", "app_silent", "id", m.ID, "error", err)
		return nil, false, noApplication("the application did not answer in time")
	case refused != "":
		return nil, false, wire.NewProblem(http.StatusBadRequest, wire.CodeInvalidRequest, "%s", wire.Printable(refused, maxRefusal))
	}
	answer, p := checkAnswer(data, a.n.cfg.MaxMessageBytes)
	return answer, false, p
}

// keptApp is an application that reads a stream of JetStream.
type keptApp struct{ n *Node }

func (a keptApp) close() {}

func (a keptApp) ask(ctx context.Context, m *wire.AppMessage) (json.RawMessage, bool, *wire.Problem) {
	sum := sha256.Sum256(m.Data) // another content with the same id is another message
	id := m.ID + "." + base64.RawURLEncoding.EncodeToString(sum[:12])
	seq, dup, err := a.n.nats.KeepForApplication(ctx, id, encodeMessage(m), a.n.cfg.InboxMaxAge, a.n.cfg.InboxReplicas)
	if err != nil {
		a.n.log.Warn("a message for the application cannot be stored", "event", "app_unstored", "id", m.ID, "error", err)
		return nil, false, wire.NewProblem(http.StatusServiceUnavailable, wire.CodeStoreUnavailable, "the message for the application could not be stored; send it again with the same id")
	}
	return fmt.Appendf(nil, `{"seq":%d}`, seq), dup, nil
}

// maxRefusal bounds what a client is told of why the application refused it.
const maxRefusal = 200

func checkAnswer(data []byte, limit int) (json.RawMessage, *wire.Problem) {
	data = bytes.TrimSpace(data)
	switch {
	case len(data) == 0:
		return nil, nil
	case len(data) > limit:
		return nil, wire.NewProblem(http.StatusBadGateway, wire.CodeInternal, "the application's answer is too long")
	case wire.CheckJSON(data) != nil:
		return nil, wire.NewProblem(http.StatusBadGateway, wire.CodeInternal, "the application's answer is not JSON")
	}
	return data, nil
}

// webhook is an application behind a URL.
//
//	POST, signed --2xx--> its JSON is the answer
//	  ^    |  \--400, 403, 409, 410, 422--> refused
//	  |    +--anything else, or no answer--+
//	  +-- a wait that doubles, or Retry-After, if there is time for it; else no_application
type webhook struct {
	url    string
	secret []byte
	limit  int    // bytes of an answer
	busy   func() // called when a message found no slot in time
	slots  *slots // attempts at the same time, by user
	client *http.Client
	log    *slog.Logger
	warn   *rate.Limiter
}

const (
	webhookPause = 100 * time.Millisecond
	webhookMost  = 2 * time.Second
)

func (w *webhook) close() { w.client.CloseIdleConnections() }

func (w *webhook) ask(ctx context.Context, m *wire.AppMessage) (json.RawMessage, bool, *wire.Problem) {
	body := encodeMessage(m)
	var last *wire.Problem
	for pause := webhookPause; ; pause = min(2*pause, webhookMost) {
		if !w.slots.take(ctx, m.User) {
			if last == nil {
				w.busy()
				last = wire.NewProblem(http.StatusServiceUnavailable, wire.CodeRateLimited, "the application is busy; try again later")
			}
			return nil, false, last
		}
		data, p, after := w.try(ctx, m.ID, body)
		w.slots.leave(m.User)
		if after == 0 {
			return data, false, p
		}
		last = p
		// Full jitter, and never earlier than it asked for.
		wait := max(after, rand.N(pause)) // #nosec G404 -- jitter
		if end, ok := ctx.Deadline(); ok && time.Until(end) < wait {
			w.failed(m.ID, p)
			return nil, false, p
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			w.failed(m.ID, p)
			return nil, false, p
		}
	}
}

// failed tells the operator, though not for each of very many.
func (w *webhook) failed(id string, p *wire.Problem) {
	if w.warn.Allow() {
		w.log.Warn("the application's webhook does not take messages", "event", "app_failed", "id", id, "why", p.Detail)
	}
}

// try posts once. after is not 0 if it should be tried again: then it is the least
// wait, and the problem what to say if there is no time for that.
func (w *webhook) try(ctx context.Context, id string, body []byte) (data json.RawMessage, p *wire.Problem, after time.Duration) {
	const soon = time.Millisecond
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(body))
	if err != nil {
		return nil, noApplication("the application cannot be asked"), 0
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Idempotency-Key", id)
	r.Header.Set(wire.HeaderSignature, wire.SignWebhook(w.secret, body, time.Now()))
	resp, err := w.client.Do(r)
	if err != nil {
		return nil, noApplication("the application did not answer in time"), soon
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, int64(w.limit)+1))
	if err != nil {
		return nil, noApplication("the application did not answer whole"), soon
	}
	switch code := resp.StatusCode; code {
	case http.StatusOK, http.StatusCreated, http.StatusAccepted, http.StatusNoContent:
		data, p = checkAnswer(answer, w.limit)
		return data, p, 0
	case http.StatusBadRequest, http.StatusForbidden, http.StatusConflict, http.StatusGone, http.StatusUnprocessableEntity:
		return nil, wire.NewProblem(http.StatusBadRequest, wire.CodeInvalidRequest, "%s", refusal(code, answer)), 0
	default: // also 401 and 404: a wrong secret or URL is no fault of the client
		after := soon
		if sec, err := strconv.Atoi(strings.TrimSpace(resp.Header.Get("Retry-After"))); err == nil && sec > 0 {
			after = time.Duration(min(sec, 3600)) * time.Second
		}
		return nil, noApplication("the application answers with status %d", code), after
	}
}

// refusal is what a client is told: the detail of a problem document, if it is one.
func refusal(code int, answer []byte) string {
	var p struct {
		Detail string `json:"detail"`
	}
	if json.Unmarshal(answer, &p) == nil && p.Detail != "" {
		return wire.Printable(p.Detail, maxRefusal)
	}
	return fmt.Sprintf("the application refuses it with status %d", code)
}
