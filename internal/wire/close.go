package wire

import "strconv"

// WebSocket close codes of the contract. The hundreds say what a client does:
// see Action.
const (
	CloseNormal    = 1000
	CloseGoingAway = 1001

	// What is not RFC 6455 ends with its codes.
	CloseBroken  = 1002
	CloseNoText  = 1007
	CloseTooLong = 1009

	CloseUnauthorized    = 4001
	CloseKicked          = 4002
	CloseReplaced        = 4003
	CloseTooManySessions = 4004
	CloseProtocol        = 4005
	CloseTooBig          = 4006

	CloseTooSlow     = 4101
	CloseRateLimit   = 4102
	CloseOverloaded  = 4103
	ClosePingTimeout = 4104

	CloseMoved       = 4201
	CloseDraining    = 4202
	CloseLifetime    = 4203
	CloseNotTheOwner = 4204
)

var closeText = map[int]string{
	CloseBroken:  "broken frame",
	CloseNoText:  "invalid UTF-8",
	CloseTooLong: "frame too long",

	CloseUnauthorized:    "unauthorized",
	CloseKicked:          "kicked",
	CloseReplaced:        "replaced by the same device",
	CloseTooManySessions: "too many sessions",
	CloseProtocol:        "protocol error",
	CloseTooBig:          "message too big",
	CloseTooSlow:         "too slow",
	CloseRateLimit:       "rate limit",
	CloseOverloaded:      "overloaded",
	ClosePingTimeout:     "ping timeout",
	CloseMoved:           "moved",
	CloseDraining:        "draining",
	CloseLifetime:        "lifetime reached",
	CloseNotTheOwner:     "no longer the owner",
}

// CloseText returns the contract's name of a close code, or the number.
func CloseText(code int) string {
	if s, ok := closeText[code]; ok {
		return s
	}
	return strconv.Itoa(code)
}

// Action is what a client does when its connection has ended.
type Action int

const (
	// RetryBackoff: locate again after the back-off.
	RetryBackoff Action = iota
	// RetryNow: locate again at once, after a short jitter.
	RetryNow
	// Stop: do not come back, and report it.
	Stop
)

// ActionFor returns what a client does after close code; 0 stands for a
// connection that ended without a close frame.
func ActionFor(code int) Action {
	switch {
	case code >= 4000 && code < 4100:
		return Stop
	case code >= 4200 && code < 4300:
		return RetryNow
	}
	return RetryBackoff
}
