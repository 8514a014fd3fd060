// Package tracing hands spans of pushes to an OpenTelemetry collector, if there is
// one. A push that is not traced costs nothing: its *Span is nil, and all methods
// take that.
//
//	service            locator                 node
//	traceparent -----> POST /v1/push/{user} -> push -+- append   (a stored one)
//	                                                 +- deliver
//
// From locator to node a span's name travels as 24 bytes in the call, and only if
// it is sampled.
package tracing

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Options of a Tracer.
type Options struct {
	// Endpoint is the collector's URL, OTLP over HTTP, such as http://collector:4318;
	// without a path it is /v1/traces. Empty: nothing is traced.
	Endpoint string
	// Ratio of the pushes whose caller says nothing about tracing. Whoever sends a
	// traceparent decides for itself.
	Ratio float64
	// Service is locator or wsnode, Instance which one of them, Cluster of which cluster.
	Service, Instance, Cluster string
	Log                        *slog.Logger
}

// Tracer makes spans. nil makes none. All methods may be called concurrently.
type Tracer struct {
	provider *sdk.TracerProvider
	tracer   trace.Tracer
	header   propagation.TraceContext
	sayer    *sayer
	ended    atomic.Int64 // spans
}

// New makes a tracer, or nil if there is no endpoint. It does no I/O.
func New(o Options) (*Tracer, error) {
	if o.Endpoint == "" {
		return nil, nil
	}
	u, err := url.Parse(o.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("OpenTelemetry: %w", err)
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/traces"
	}
	exporter, err := otlptracehttp.New(context.Background(), otlptracehttp.WithEndpointURL(u.String()), otlptracehttp.WithTimeout(exportTimeout),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{Enabled: false}))
	if err != nil {
		return nil, fmt.Errorf("OpenTelemetry: %w", err)
	}
	s := &sayer{SpanExporter: exporter, log: o.Log}
	t := &Tracer{sayer: s, provider: sdk.NewTracerProvider(
		sdk.WithBatcher(s, sdk.WithBatchTimeout(time.Second)),
		sdk.WithSampler(sdk.ParentBased(sdk.TraceIDRatioBased(o.Ratio))),
		sdk.WithResource(resource.NewSchemaless(attribute.String("service.name", "dialring-"+o.Service), attribute.String("service.namespace", o.Cluster),
			attribute.String("service.instance.id", o.Instance))),
	)}
	t.tracer = t.provider.Tracer("github.com/dialring/dialring")
	return t, nil
}

// exportTimeout is how long one hand-over to the collector may take. Spans wait in
// a queue of 2,048 meanwhile; those that find it full are lost.
const exportTimeout = 5 * time.Second

// Close hands over what is left, for up to exportTimeout.
func (t *Tracer) Close() {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), exportTimeout)
	defer cancel()
	_ = t.provider.Shutdown(ctx) // sayer has said what failed
}

// sayer says in the log that the collector takes no spans, instead of on stderr, and
// counts them.
type sayer struct {
	sdk.SpanExporter
	log  *slog.Logger
	said atomic.Int64 // when, in Unix seconds

	sent, failed atomic.Int64
}

// Counts are the spans that the collector took, that it did not take, and that were lost
// before, since too many waited for it.
func (t *Tracer) Counts() (sent, failed, dropped int64) {
	if t == nil {
		return 0, 0, 0
	}
	sent, failed = t.sayer.sent.Load(), t.sayer.failed.Load()
	return sent, failed, max(0, t.ended.Load()-sent-failed-waiting)
}

// waiting is how many spans may wait for the collector: so many that have ended may
// neither have been sent nor be lost.
const waiting = sdk.DefaultMaxQueueSize + sdk.DefaultMaxExportBatchSize

// sayAgain is how often the log hears of it.
const sayAgain = 60

func (s *sayer) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	err := s.SpanExporter.ExportSpans(ctx, spans)
	if err == nil {
		s.sent.Add(int64(len(spans)))
	} else {
		s.failed.Add(int64(len(spans)))
	}
	if now := time.Now().Unix(); err != nil && now-s.said.Load() >= sayAgain {
		s.said.Store(now)
		s.log.Warn("the OpenTelemetry collector takes no spans", "event", "traces_unsent", "spans", len(spans), "error", err)
	}
	return nil
}

// Span is a piece of a push's way; nil: it is not traced. A span may be used by
// one goroutine at a time.
type Span struct {
	tracer *Tracer
	span   trace.Span
}

// Request begins the span of a request, by its traceparent if it has one.
func (t *Tracer) Request(r *http.Request, route string) *Span {
	if t == nil {
		return nil
	}
	ctx := t.header.Extract(context.Background(), propagation.HeaderCarrier(r.Header))
	return t.begin(ctx, r.Method+" "+route, time.Now(), trace.SpanKindServer, attribute.String("http.request.method", r.Method), attribute.String("http.route", route))
}

// carrierBytes is the length of what Carrier returns.
const carrierBytes = 24

// From begins a span whose parent is in another process, by that one's Carrier.
func (t *Tracer) From(carrier []byte, name string, start time.Time) *Span {
	if t == nil || len(carrier) != carrierBytes {
		return nil
	}
	parent := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID(carrier[:16]), SpanID: trace.SpanID(carrier[16:]), TraceFlags: trace.FlagsSampled, Remote: true})
	return t.begin(trace.ContextWithSpanContext(context.Background(), parent), name, start, trace.SpanKindServer)
}

func (t *Tracer) begin(ctx context.Context, name string, start time.Time, kind trace.SpanKind, attrs ...attribute.KeyValue) *Span {
	_, s := t.tracer.Start(ctx, name, trace.WithSpanKind(kind), trace.WithTimestamp(start), trace.WithAttributes(attrs...))
	if !s.IsRecording() {
		return nil
	}
	return &Span{t, s}
}

// Carrier names the span to another process; nil if there is none.
func (s *Span) Carrier() []byte {
	if s == nil {
		return nil
	}
	c := s.span.SpanContext()
	id, span := c.TraceID(), c.SpanID()
	return append(append(make([]byte, 0, carrierBytes), id[:]...), span[:]...)
}

// Child begins a span within this one.
func (s *Span) Child(name string, start time.Time) *Span {
	if s == nil {
		return nil
	}
	return s.tracer.begin(trace.ContextWithSpan(context.Background(), s.span), name, start, trace.SpanKindInternal)
}

// Set notes a text.
func (s *Span) Set(key, value string) {
	if s != nil {
		s.span.SetAttributes(attribute.String(key, value))
	}
}

// SetInt notes a number.
func (s *Span) SetInt(key string, value int) {
	if s != nil {
		s.span.SetAttributes(attribute.Int(key, value))
	}
}

// End ends the span; failed says why it failed, if it did. It must not hold
// anything of a payload.
func (s *Span) End(failed string) {
	if s == nil {
		return
	}
	if failed != "" {
		s.span.SetStatus(codes.Error, failed)
	}
	s.tracer.ended.Add(1)
	s.span.End()
}

// EndAt ends a span that went well, at a time of before.
func (s *Span) EndAt(at time.Time) {
	if s != nil {
		s.tracer.ended.Add(1)
		s.span.End(trace.WithTimestamp(at))
	}
}
