package wsnode

import (
	"encoding/json"
	"errors"
	"unicode/utf8"

	"github.com/lxzan/gws"

	"github.com/dialring/dialring/internal/wire"
)

// events are gws's callbacks; all of a connection's come from its reader.
type events struct{}

func (events) OnOpen(*gws.Conn) {}

// OnClose notes what the peer said; session.gone does the rest, also where gws does not
// call this.
func (events) OnClose(c *gws.Conn, err error) {
	var e *gws.CloseError
	if errors.As(err, &e) {
		sessionOf(c).peerCode = int(e.Code)
	}
}

func (events) OnPing(c *gws.Conn, payload []byte) {
	s := sessionOf(c)
	if !s.came() {
		return
	}
	s.send(outgoing{frame: frame(gws.OpcodePong, payload)})
}

func (events) OnPong(c *gws.Conn, _ []byte) {
	s := sessionOf(c)
	s.unanswered.Store(0)
	s.came()
}

func (events) OnMessage(c *gws.Conn, m *gws.Message) {
	defer m.Close()
	s := sessionOf(c)
	s.unanswered.Store(0)
	if !s.came() {
		return
	}
	switch {
	case m.Opcode != gws.OpcodeText:
		s.close(wire.CloseProtocol, "frames are text")
	case !utf8.Valid(m.Bytes()): // gws would close past what is queued
		s.close(wire.CloseNoText, "")
	default:
		s.frame(m.Bytes())
	}
}

func sessionOf(c *gws.Conn) *session { return c.Session().(*holder).s }

// frame handles a text frame of the client. Types that are not of the contract
// are ignored; what is no JSON object with a type ends the session.
func (s *session) frame(b []byte) {
	f, err := wire.ParseFrame(b)
	if err == nil {
		err = wire.CheckRef(f.Ref)
	}
	if err != nil {
		s.close(wire.CloseProtocol, "a frame is one JSON object with a type")
		return
	}
	switch f.Type {
	case wire.TypePing:
		s.reply(wire.Pong{Type: wire.TypePong, Ref: f.Ref})
	case wire.TypeAck:
		if wire.CheckCursor(f.Cursor) != nil {
			s.close(wire.CloseProtocol, "an ack has a cursor")
			return
		}
		s.ackFree(len(b))
		s.ack(f.Cursor)
	case wire.TypeResume:
		if wire.CheckCursor(f.Since) != nil {
			s.close(wire.CloseProtocol, "a resume has a cursor in since")
			return
		}
		s.resume(f.Since)
	case wire.TypeSend:
		if !s.isClosing() { // who was kicked does nothing any more
			s.sent(b, f.Ref)
		}
	}
}

func (s *session) reply(v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // a ref was parsed as JSON, the rest are plain fields
	}
	s.send(outgoing{frame: frame(gws.OpcodeText, b)})
}
