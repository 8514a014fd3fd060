package ticket

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha512"

	"filippo.io/edwards25519"
)

// A signature of Ed25519 (RFC 8032) is R and S: R = rB for a nonce r that is
// used once, S = r + H(R, A, M)s. Computing R is nearly all of the 15 us that
// signing takes, and needs only r: Ed25519 takes r from the message to do
// without a random source, but any r that is random, secret and never used
// again gives a signature that verifies the same. So Fill makes pairs of r and R
// ahead of time, and signing with one takes 2 us: what a locator needs when all
// clients of a dead node ask at once. When there is none, crypto/ed25519 signs.
//
// The risk of that is a nonce used twice, which would tell the key: here each
// is received from a channel, by one signature, and wiped. (A snapshot of the
// running process that is resumed twice would do it, too; the key is the
// process's own and lives no longer than it.)
type nonce struct {
	r      *edwards25519.Scalar
	public [32]byte // R, encoded
}

// storedNonces is how many pairs are kept ready, 64 bytes each.
const storedNonces = 4096

// Fill keeps nonces ready until ctx ends.
func (s *Signer) Fill(ctx context.Context) {
	for {
		select {
		case s.nonces <- newNonce():
		case <-ctx.Done():
			return
		}
	}
}

func newNonce() nonce {
	var b [64]byte
	_, _ = rand.Read(b[:]) // never fails, by its documentation
	r, err := edwards25519.NewScalar().SetUniformBytes(b[:])
	if err != nil {
		panic(err) // 64 bytes are the right length
	}
	n := nonce{r: r}
	copy(n.public[:], new(edwards25519.Point).ScalarBaseMult(r).Bytes())
	return n
}

// signature signs m, with a nonce that is ready if there is one.
func (s *Signer) signature(m []byte) []byte {
	select {
	case n := <-s.nonces:
		return s.signWith(n, m)
	default:
		return ed25519.Sign(s.key, m)
	}
}

func (s *Signer) signWith(n nonce, m []byte) []byte {
	h := sha512.New()
	h.Write(n.public[:])
	h.Write(s.Public)
	h.Write(m)
	k, err := edwards25519.NewScalar().SetUniformBytes(h.Sum(nil))
	if err != nil {
		panic(err) // SHA-512 has 64 bytes
	}
	sig := make([]byte, 0, ed25519.SignatureSize)
	sig = append(sig, n.public[:]...)
	sig = append(sig, k.MultiplyAdd(k, s.scalar, n.r).Bytes()...)
	n.r.Set(edwards25519.NewScalar())
	return sig
}

// secretScalar is s of RFC 8032, 5.1.5.
func secretScalar(key ed25519.PrivateKey) *edwards25519.Scalar {
	h := sha512.Sum512(key.Seed())
	s, err := edwards25519.NewScalar().SetBytesWithClamping(h[:32])
	if err != nil {
		panic(err) // 32 bytes are the right length
	}
	return s
}
