package ticket

import (
	"context"
	"crypto/ed25519"
	"sync"
	"testing"
)

// Signatures with nonces made ahead verify like any other, and no nonce serves
// two of them, however many sign at once.
func TestSignatureWithNonces(t *testing.T) {
	s := NewSigner()
	ctx, cancel := context.WithCancel(t.Context())
	var filling sync.WaitGroup
	filling.Go(func() { s.Fill(ctx) })
	defer filling.Wait()
	defer cancel()
	const each = 500
	var mu sync.Mutex
	seen := map[string]bool{}
	var signing sync.WaitGroup
	for g := range 4 {
		signing.Go(func() {
			for i := range each {
				m := []byte{byte(g), byte(i), byte(i >> 8)}
				sig := s.signature(m)
				if !ed25519.Verify(s.Public, m, sig) {
					t.Errorf("signature %x of %x does not verify", sig, m)
				}
				if m[0]++; ed25519.Verify(s.Public, m, sig) {
					t.Error("it verifies another message")
				}
				mu.Lock()
				if r := string(sig[:32]); seen[r] {
					t.Errorf("nonce %x was used twice", r)
				} else {
					seen[r] = true
				}
				mu.Unlock()
			}
		})
	}
	signing.Wait()
}

func TestSignatureWithoutNonces(t *testing.T) {
	s := NewSigner()
	m := []byte("message")
	if !ed25519.Verify(s.Public, m, s.signature(m)) {
		t.Error("it does not verify")
	}
}

func TestSignWithOneNonce(t *testing.T) {
	s := NewSigner()
	m := []byte("message")
	n := newNonce()
	sig := s.signWith(n, m)
	if !ed25519.Verify(s.Public, m, sig) {
		t.Error("it does not verify")
	}
	for _, b := range n.r.Bytes() {
		if b != 0 {
			t.Fatal("the nonce was not wiped")
		}
	}
}

func BenchmarkSignature(b *testing.B) {
	m := make([]byte, 250)
	b.Run("ready", func(b *testing.B) {
		s := NewSigner()
		for b.Loop() {
			b.StopTimer()
			n := newNonce()
			b.StartTimer()
			s.signWith(n, m)
		}
	})
	b.Run("crypto", func(b *testing.B) {
		s := NewSigner()
		for b.Loop() {
			ed25519.Sign(s.key, m)
		}
	})
}
