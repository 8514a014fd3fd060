package wsnode

import (
	"encoding/json"

	"github.com/lxzan/gws"

	"github.com/dialring/dialring/internal/wire"
)

// events are gws's callbacks; all of a connection's come from its reader.
type events struct{}

func (events) OnOpen(*gws.Conn)         {}
func (events) OnClose(*gws.Conn, error) {} // session.gone does it, also where gws does not call this

func (events) OnPing(c *gws.Conn, payload []byte) {
	sessionOf(c).send(outgoing{frame: frame(gws.OpcodePong, payload)})
}

func (events) OnPong(c *gws.Conn, _ []byte) { sessionOf(c).unanswered.Store(0) }

func (events) OnMessage(c *gws.Conn, m *gws.Message) {
	defer m.Close()
	s := sessionOf(c)
	s.unanswered.Store(0)
	if m.Opcode != gws.OpcodeText {
		s.close(wire.CloseProtocol, "frames are text")
		return
	}
	s.frame(m.Bytes())
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
