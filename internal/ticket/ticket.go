// Package ticket makes and checks the signed, short-lived tokens inside a
// cluster: tickets, with which a client dials the node that owns its user, and
// peer tokens, with which locators and nodes call a node. Both are JWTs signed
// with Ed25519 by a key that its process made at start; the public half is
// published (see internal/cluster) under the key id that the token names.
package ticket

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"filippo.io/edwards25519"
	"github.com/golang-jwt/jwt/v5"

	"github.com/dialring/dialring/internal/wire"
)

// Life is how long a token is good after it was signed.
const Life = 30 * time.Second

const (
	// MaxBytes bounds a ticket, by contract.
	MaxBytes = 1024
	// MoveBytes is what a ticket that moves a session has more than that session's
	// first one, at most: its id, when it connected, a longer node id and epoch.
	MoveBytes = 200
)

// Kinds of tokens; one never passes for another.
const (
	kindTicket = "dr-ticket"
	kindPeer   = "dr-peer"
	kindEdge   = "dr-edge"
)

// Why a token is refused. What else is wrong with it wraps ErrInvalid.
var (
	ErrInvalid    = errors.New("not a valid token")
	ErrExpired    = errors.New("the token has expired")
	ErrUnknownKey = errors.New("the token is signed by a key that this cluster does not know")
	ErrAudience   = errors.New("the token is for another node")
	ErrUsed       = errors.New("the token was used before")
	ErrFull       = errors.New("too many tokens are remembered as used, try again later")
)

// Signer signs with a key of this process. It may be used concurrently.
type Signer struct {
	KID    string
	Public ed25519.PublicKey
	key    ed25519.PrivateKey
	scalar *edwards25519.Scalar // of key
	nonces chan nonce
}

// NewSigner makes a key; its private half never leaves the process.
func NewSigner() *Signer {
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	return &Signer{KID: KID(pub), Public: pub, key: key, scalar: secretScalar(key), nonces: make(chan nonce, storedNonces)}
}

// KID is the id of a public key: 96 bits of its SHA-256, so that nobody has another key
// under an id that is taken.
func KID(pub ed25519.PublicKey) string {
	sum := sha256.Sum256(pub)
	return base64.RawURLEncoding.EncodeToString(sum[:12])
}

// Ticket is what a client's ticket says.
type Ticket struct {
	User, Device, Node string
	Epoch              uint64 // of the ring by which the node was chosen
	// Session is set when it moves a session that there is already; Connected is
	// then when that first connected.
	Session   string
	Connected time.Time // to the millisecond
	// SendTo says to which users this one may send: ids, or beginnings of ids with a
	// * behind. None: to nobody.
	SendTo []string
	// Issued is when it was signed, by the reader's clock, to a second: at the latest then.
	Issued time.Time
	// From is the node that signed it; empty: a locator.
	From string
}

// claims of a token, as they are read. They are written by sign.
type claims struct {
	Claims
	Device    string   `json:"dev,omitempty"`
	Epoch     uint64   `json:"ep,omitempty"`
	Session   string   `json:"sid,omitempty"`
	Connected int64    `json:"cat,omitempty"` // ms since 1970
	SendTo    []string `json:"to,omitempty"`
}

// Ticket signs t, good from now on for Life. The user must be valid UTF-8.
func (s *Signer) Ticket(t Ticket, now time.Time) string {
	return s.sign(kindTicket, t, now)
}

// Peer signs a token with which from, a locator or a node, calls node.
func (s *Signer) Peer(from, node string, now time.Time) string {
	return s.sign(kindPeer, Ticket{User: from, Node: node}, now)
}

// Edge signs a token for one dial of a client that a locator relays to a node.
func (s *Signer) Edge(from, node string, now time.Time) string {
	return s.sign(kindEdge, Ticket{User: from, Node: node}, now)
}

// sign writes a JWT (RFC 7519) by hand: every locate does it, and going through
// maps and reflection takes a third as long as the signature itself.
func (s *Signer) sign(kind string, t Ticket, now time.Time) string {
	var id [12]byte
	_, _ = rand.Read(id[:])
	c := make([]byte, 0, 256)
	c = append(c, `{"sub":`...)
	c = wire.AppendString(c, t.User)
	if t.Device != "" {
		c = append(c, `,"dev":`...)
		c = wire.AppendString(c, t.Device)
	}
	c = append(c, `,"aud":`...)
	c = wire.AppendString(c, t.Node)
	c = append(c, `,"exp":`...)
	c = strconv.AppendInt(c, now.Add(Life).Unix(), 10)
	if t.Epoch > 0 {
		c = append(c, `,"ep":`...)
		c = strconv.AppendUint(c, t.Epoch, 10)
	}
	if t.Session != "" {
		c = append(c, `,"sid":`...)
		c = wire.AppendString(c, t.Session)
		c = append(c, `,"cat":`...)
		c = strconv.AppendInt(c, t.Connected.UnixMilli(), 10)
	}
	for i, to := range t.SendTo {
		if i == 0 {
			c = append(c, `,"to":[`...)
		} else {
			c = append(c, ',')
		}
		c = wire.AppendString(c, to)
	}
	if len(t.SendTo) > 0 {
		c = append(c, ']')
	}
	c = append(c, `,"jti":"`...)
	c = base64.RawURLEncoding.AppendEncode(c, id[:])
	c = append(c, `"}`...)

	b := make([]byte, 0, 768)
	b = base64.RawURLEncoding.AppendEncode(b, []byte(`{"alg":"EdDSA","kid":"`+s.KID+`","typ":"`+kind+`"}`))
	b = append(b, '.')
	b = base64.RawURLEncoding.AppendEncode(b, c)
	sig := s.signature(b)
	b = append(b, '.')
	return string(base64.RawURLEncoding.AppendEncode(b, sig))
}

// Names of processes that sign begin so.
const (
	FromLocator = "locator:"
	FromNode    = "node:"
)

// Keys finds the public keys of the cluster. Key returns nil for an unknown
// one, else also whose it is: FromLocator or FromNode and an id. Skew is by how much the clock of the key's owner is ahead of this one's:
// expiry is judged by the clock that wrote it.
type Keys interface {
	Key(kid string) (pub ed25519.PublicKey, owner string)
	Skew(kid string) time.Duration
}

// Verifier checks tokens for one node, each of which it accepts once. It may be
// used concurrently.
type Verifier struct {
	node string
	keys Keys
	used *used
}

// NewVerifier makes a verifier of tokens for node that remembers at most
// maxUsed tokens at a time; beyond that tokens are refused with ErrFull.
func NewVerifier(node string, keys Keys, maxUsed int) *Verifier {
	return &Verifier{node: node, keys: keys, used: newUsed(maxUsed)}
}

// KeyIDOf is what a token says of its key, for the log: nothing of it has been checked.
func KeyIDOf(token string) string {
	if len(token) > MaxBytes {
		return ""
	}
	header, _, _ := strings.Cut(token, ".")
	b, err := base64.RawURLEncoding.DecodeString(header)
	if err != nil {
		return ""
	}
	var h struct {
		KID string `json:"kid"`
	}
	_ = json.Unmarshal(b, &h)
	return h.KID
}

// Ticket checks a client's ticket and uses it up. With ErrExpired, ErrAudience, ErrUsed and
// ErrFull its signature is good, and the user and the device are returned for the log.
func (v *Verifier) Ticket(token string, now time.Time) (Ticket, error) {
	if len(token) > MaxBytes {
		return Ticket{}, fmt.Errorf("%w: longer than %d bytes", ErrInvalid, MaxBytes)
	}
	c, err := v.verify(kindTicket, token, now)
	switch {
	case errors.Is(err, ErrInvalid), errors.Is(err, ErrUnknownKey):
		return Ticket{}, err
	case err != nil:
		return Ticket{User: c.Subject, Device: c.Device}, err
	}
	t := Ticket{Issued: c.issued, User: c.Subject, Device: c.Device, Node: v.node, Epoch: c.Epoch, Session: c.Session, SendTo: c.SendTo}
	if from, ok := strings.CutPrefix(c.owner, FromNode); ok {
		t.From = from
	}
	if t.Session != "" {
		t.Connected = time.UnixMilli(c.Connected)
	} else if t.From != "" {
		return Ticket{}, fmt.Errorf("%w: a node signs tickets for sessions that it moves, and for nobody else", ErrInvalid)
	}
	return t, nil
}

// Peer checks a peer token, uses it up and returns who calls.
func (v *Verifier) Peer(token string, now time.Time) (from string, err error) {
	return v.caller(kindPeer, token, now)
}

// Edge does that with the token of a relayed dial. Only locators relay.
func (v *Verifier) Edge(token string, now time.Time) (from string, err error) {
	from, err = v.caller(kindEdge, token, now)
	if err == nil && !strings.HasPrefix(from, FromLocator) {
		err = fmt.Errorf("%w: %s is no locator", ErrInvalid, from)
	}
	return from, err
}

func (v *Verifier) caller(kind, token string, now time.Time) (from string, err error) {
	if len(token) > MaxBytes {
		return "", fmt.Errorf("%w: longer than %d bytes", ErrInvalid, MaxBytes)
	}
	c, err := v.verify(kind, token, now)
	if err != nil {
		return "", err
	}
	if c.Subject != c.owner { // a node does not call in the name of a locator, nor of another node
		return "", fmt.Errorf("%w: %q calls with the key of %q", ErrInvalid, c.Subject, c.owner)
	}
	return c.Subject, nil
}

type verified struct {
	claims
	kid    string
	owner  string
	issued time.Time
}

func (v *Verifier) verify(kind, token string, now time.Time) (verified, error) {
	var out verified
	var skew time.Duration
	// The algorithm is EdDSA whatever the token says; jku, jwk and x5c are not
	// even looked at. Expiry is checked below, with the skew of the key's owner.
	p := jwt.NewParser(jwt.WithValidMethods([]string{"EdDSA"}), jwt.WithoutClaimsValidation(), jwt.WithStrictDecoding())
	_, err := p.ParseWithClaims(token, &out.claims, func(t *jwt.Token) (any, error) {
		if t.Header["typ"] != kind {
			return nil, fmt.Errorf("not a %s", kind)
		}
		kid, _ := t.Header["kid"].(string)
		key, owner := v.keys.Key(kid)
		if key == nil {
			return nil, ErrUnknownKey
		}
		out.kid, out.owner, skew = kid, owner, v.keys.Skew(kid)
		return key, nil
	})
	switch {
	case errors.Is(err, ErrUnknownKey):
		return out, ErrUnknownKey
	case err != nil:
		return out, fmt.Errorf("%w: %w", ErrInvalid, err)
	case out.Expires == nil || out.ID == "" || out.Subject == "":
		return out, fmt.Errorf("%w: a claim is missing", ErrInvalid)
	}
	theirs := now.Add(skew)
	left := out.Expires.Sub(theirs)
	if left <= 0 {
		return out, ErrExpired
	}
	if left > Life+leeway {
		return out, fmt.Errorf("%w: it is good for longer than tokens are", ErrInvalid)
	}
	if len(out.Audience) != 1 || out.Audience[0] != v.node {
		return out, ErrAudience
	}
	out.issued = now.Add(left - Life)
	sum := sha256.Sum256([]byte(out.kid + "." + out.ID))
	return out, v.used.use(usedID(sum[:16]), now)
}
