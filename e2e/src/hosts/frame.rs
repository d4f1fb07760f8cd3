//! Ethernet frames within VXLAN datagrams, as far as a wire must know them.

use super::Host;

/// Bytes of the VXLAN header before the frame.
const VXLAN: usize = 8;
/// Where the frame's parts begin in a datagram.
const SOURCE: usize = VXLAN + 6;
const ETHERTYPE: usize = VXLAN + 12;
const PACKET: usize = VXLAN + 14;
/// Within a packet.
const PROTOCOL: usize = 9;
const ADDRESSES: std::ops::Range<usize> = 12..20;
/// Within a TCP segment.
const CHECKSUM: usize = 16;

const IPV4: [u8; 2] = [0x08, 0x00];
const TCP: u8 = 6;
/// First byte of a host's MAC address.
const LOCAL: u8 = 0x02;

/// Whom a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receiver {
    One(Host),
    All,
}

/// Sender and receiver of the frame in a datagram, if it is one of ours.
pub(super) fn ends(datagram: &[u8]) -> Option<(Host, Receiver)> {
    let (receiver, sender) = (datagram.get(VXLAN..SOURCE)?, datagram.get(SOURCE..ETHERTYPE)?);
    let receiver = match receiver {
        [LOCAL, .., host] => Receiver::One(*host),
        // Broadcast or multicast.
        [first, ..] if first & 1 == 1 => Receiver::All,
        _ => return None,
    };
    Some((*sender.last()?, receiver))
}

/// Sets the checksum of a TCP segment over IPv4. The kernel leaves that to the network card, and there is none before this.
pub(super) fn complete_checksum(datagram: &mut [u8]) {
    if datagram.get(ETHERTYPE..PACKET) != Some(&IPV4) {
        return;
    }
    let Some(packet) = datagram.get_mut(PACKET..) else { return };
    let &[first, _, high, low, ..] = &*packet else { return };
    let (header, length) = (4 * usize::from(first & 0xf), usize::from(u16::from_be_bytes([high, low])));
    if packet.get(PROTOCOL) != Some(&TCP) || length < header + CHECKSUM + 2 || header < ADDRESSES.end {
        return;
    }
    let Some(segment) = packet.get_mut(header..length) else { return };
    segment[CHECKSUM..CHECKSUM + 2].fill(0);
    let pseudo_header = sum(&packet[ADDRESSES]) + u64::from(TCP) + (length - header) as u64;
    let checksum = !fold(pseudo_header + sum(&packet[header..length]));
    packet[header + CHECKSUM..header + CHECKSUM + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Sum of 16-bit words, the last one filled up with a zero.
fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|word| u64::from(word[0]) << 8 | u64::from(word.get(1).copied().unwrap_or(0))).sum()
}

/// In one's complement.
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three bytes from host 2 to host 1, with a checksum that is none.
    fn segment() -> Vec<u8> {
        let mut datagram = vec![0; VXLAN];
        datagram.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00]);
        datagram.extend([0x45, 0, 0, 43, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 98, 7, 2, 10, 98, 7, 1]);
        datagram.extend([0x9c, 0x40, 0x1b, 0x9e, 1, 2, 3, 4, 5, 6, 7, 8, 0x50, 0x18, 0xff, 0xff, 0xab, 0xcd, 0, 0]);
        datagram.extend([7, 8, 9]);
        // Padding, which is not of the packet.
        datagram.extend([0xee; 3]);
        datagram
    }

    #[test]
    fn a_completed_segment_sums_to_nothing() {
        let mut datagram = segment();
        complete_checksum(&mut datagram);
        let packet = &datagram[PACKET..PACKET + 43];
        assert_eq!(fold(sum(&packet[ADDRESSES]) + 6 + 23 + sum(&packet[20..])), 0xffff);
        let again = datagram.clone();
        complete_checksum(&mut datagram);
        assert_eq!(datagram, again);
    }

    #[test]
    fn whatever_is_no_segment_is_left_alone() {
        for length in 0..segment().len() {
            let mut short = segment()[..length].to_vec();
            // The last three bytes are padding.
            if length < segment().len() - 3 {
                let before = short.clone();
                complete_checksum(&mut short);
                assert_eq!(short, before, "{length} bytes");
            }
        }
        let mut arp = segment();
        arp[ETHERTYPE + 1] = 0x06;
        let before = arp.clone();
        complete_checksum(&mut arp);
        assert_eq!(arp, before);
    }

    #[test]
    fn ends_of_frames() {
        let mut datagram = segment();
        assert_eq!(ends(&datagram), Some((2, Receiver::One(1))));
        datagram[VXLAN..SOURCE].fill(0xff);
        assert_eq!(ends(&datagram), Some((2, Receiver::All)));
        datagram[VXLAN] = 0;
        assert_eq!(ends(&datagram), None);
        assert_eq!(ends(&datagram[..VXLAN + 7]), None);
    }
}
